"""Whether tpfx is right on a GPU, and what it costs there.

python -m benchmarks.gpu                                  # two ranks on the first GPU, 230 seconds at most
python -m benchmarks.gpu --only right.recorded --only decode.1B
python -m benchmarks.gpu --devices cpu,cpu --small --seconds 900      # a rehearsal without a GPU
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .cases import CASES, COSTS, RIGHT, TIMED, Case
from .jobs import Cases, Found, Plan, run_all, time_all

JOBS = max(2, (os.cpu_count() or 1) - 2)

console = Console(highlight=False, soft_wrap=True)


def line_of(found: Found) -> str:
    """A case in a line."""
    rest = {name: value for name, value in found.items() if name not in ("case", "ok", "s", "at")}
    state = "ok  " if found["ok"] else "FAIL"
    return f"{found['case']:38} {state} {found.get('s', 0.0):6.1f} s  {json.dumps(rest, ensure_ascii=False)}"


def speeds(results: list[Found]) -> Table:
    """What was timed."""
    table = Table(title="tokens, one after the other, with a static cache", title_justify="left")
    for heading in (
        "",
        "layers",
        "ms a token",
        "of them the host",
        "ms the prompt",
        "s until 12 tokens",
        "GB",
    ):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for found in results:
        if found["ok"] and found["case"].startswith("decode."):
            keys = ("layers", "ms", "host ms", "prompt ms", "s until 12 tokens", "GB")
            table.add_row(found["case"].removeprefix("decode."), *(str(found.get(key, "")) for key in keys))
    return table


def main(
    devices: Annotated[str, typer.Option(help="one for each rank")] = "cuda:0,cuda:0",
    seconds: Annotated[float, typer.Option(help="what is not run by then is left out")] = 230.0,
    only: Annotated[list[str] | None, typer.Option(help="how names of cases begin; may be repeated")] = None,
    jobs: Annotated[int, typer.Option(help="processes that compare, or prepare, at once")] = JOBS,
    out: Annotated[Path | None, typer.Option(help="a file for a line of JSON a case")] = None,
    small: Annotated[bool, typer.Option(help="tiny models where speed is measured too")] = False,
) -> None:
    """Compare first, several at once; then prepare what is timed, and time it one by one."""
    chosen = {name: case for name, case in CASES.items() if not only or name.startswith(tuple(only))}
    start, results = time.monotonic(), list[Found]()

    def tell(found: Found) -> None:
        results.append(found)
        console.print(line_of(found), markup=False)
        if out is not None:
            with out.open("a") as file:
                file.write(json.dumps(found, ensure_ascii=False) + "\n")

    def of(some: dict[str, Case]) -> Cases:
        return [(name, float(case.seconds)) for name, case in some.items() if name in chosen]

    with (out.parent / "stderr.txt" if out is not None else Path(os.devnull)).open("a") as errors:
        child = [sys.executable, "-u", "-m", "benchmarks.gpu.child", devices, *["small"] * small]
        plan = Plan(child, jobs, start + seconds, errors)
        run_all(plan, of(RIGHT), tell)
        time_all(plan, of(TIMED), tell, reserve=3.0 * len(of(TIMED)) + 10 * bool(of(COSTS)))
        run_all(replace(plan, jobs=1), of(COSTS), tell)
    console.print(speeds(results))
    good = sum(found["ok"] for found in results)
    left = [name for name in chosen if name not in {found["case"] for found in results}]
    console.print(
        f"{good} of {len(results)} as they should be, {time.monotonic() - start:.0f} s", markup=False
    )
    if left:
        console.print(f"not run, for want of time: {', '.join(left)}", markup=False)
    raise typer.Exit(good < len(results))


if __name__ == "__main__":
    typer.run(main)
