"""CPU seconds from `tpfx.compile` to the end of the first `generate`, by stage and depth of the model.

    python -m benchmarks.cold --layers 8 --layers 32

Llamas of tiny widths, each in a process of its own, beside `torch.compile(backend="aot_eager")` in another,
and a second process of tpfx that finds the plans of the first. Counted are the CPU seconds of all threads of
the process, without imports.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import torch._dynamo.backends.common
import torch._dynamo.convert_frame
import typer
from rich.console import Console
from rich.table import Table

import tpfx
from tpfx.capture import aot
from tpfx.execution.program import Program
from tpfx.frontend import aot_compiler
from tpfx.frontend.graphs import Backend
from tpfx.native.build import cache_dir
from tpfx.passes import lower, pipeline

from .models import build, config, prompt
from .options import STANDARD_OUTPUT, JsonFile, console_beside, write_figures

TOKENS = 8
SYSTEMS = ("tpfx", "aot_eager")
CAPTURE = ("Dynamo", "AOTAutograd", "else")  # the stages that are not tpfx's alone

Figures = dict[str, Any]


def cpu_seconds() -> float:
    """Those of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Stages:
    """Seconds by stage; those of a stage inside of another count for the inner one alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: Counter[str] = Counter()
        self._open = ["else"]
        self._since = cpu_seconds()

    def _count(self) -> None:
        now = cpu_seconds()
        self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what is done inside for a stage."""
        self.calls[name] += 1
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def timed(self, run: Callable[..., Any], name: str | Callable[..., str]) -> Callable[..., Any]:
        """The same function, whose seconds are those of a stage, which may be named by its arguments."""

        @functools.wraps(run)  # Dynamo's is asked for its signature
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name if isinstance(name, str) else name(*args)):
                return run(*args, **kwargs)

        return timed


@contextmanager
def watched() -> Iterator[Stages]:
    """Count the stages of whatever is compiled and run meanwhile."""
    stages = Stages()
    rank = lambda graph, rank, *_: f"rank {rank}"  # noqa: E731
    places: list[tuple[Any, str, str | Callable[..., str]]] = [
        (torch._dynamo.convert_frame, "_compile", "Dynamo"),
        (torch._dynamo.backends.common, "aot_module_simplified", "AOTAutograd"),
        (aot, "aot_module_simplified", "AOTAutograd"),
        (aot, "fold", "fold and unfold"),
        (aot_compiler, "lower", "lower"),
        (lower, "localize", rank),
        (aot_compiler, "compile_for_devices", "programs"),
        (pipeline, "check", "checks"),
        (Program, "__call__", "runs"),
    ]
    passes = tuple(dataclasses.replace(one, run=stages.timed(one.run, one.name)) for one in pipeline.PASSES)
    with ExitStack() as undo:
        for owner, name, stage in places:
            timed = stages.timed(getattr(owner, name), stage)
            undo.enter_context(mock.patch.object(owner, name, _method(timed) if owner is Program else timed))
        undo.enter_context(mock.patch.object(pipeline, "PASSES", passes))
        yield stages
        stages._count()


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args: function(self, *args)


def measure(system: str, layers: int, devices: int) -> Figures:
    """The figures of one system, in this process, which has compiled nothing yet."""
    torch.set_num_threads(1)
    model = build(config("llama", layers, hidden=64, heads=8, kv_heads=4))
    captured: Counter[str] = Counter()
    now = ["compile"]

    def counting(capture: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            captured[now[0]] += 1
            return capture(*args, **kwargs)

        return counted

    start = cpu_seconds()
    with watched() as stages:
        if system == "tpfx":
            with mock.patch.object(Backend, "__call__", _method(counting(Backend.__call__))):
                tpfx.compile(model, ["cpu"] * devices)
                now[0] = "generate"
                model.generate(prompt(16), max_new_tokens=TOKENS, do_sample=False)
        else:
            eager = torch._dynamo.lookup_backend("aot_eager")
            model.forward = torch.compile(model.forward, backend=counting(eager))
            now[0] = "generate"
            model.generate(prompt(16), max_new_tokens=TOKENS, do_sample=False)
    return {"seconds": cpu_seconds() - start, "stages": stages.seconds, "graphs": dict(captured)}


def in_process(system: str, layers: int, devices: int, kept: Path | None = None) -> Figures:
    """The same in a process of its own, which keeps plans in a folder, if anywhere."""
    command = [sys.executable, "-m", "benchmarks.cold", "--only", system, "--layers", str(layers)]
    where = {"TPFX_CACHE": "0"} if kept is None else {"TPFX_CACHE": "1", "TPFX_CACHE_DIR": str(kept)}
    done = subprocess.run(
        [*command, "--devices", str(devices), "--json", "-"],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env={**os.environ, **where},
    )
    figures: Figures = json.loads(done.stdout)
    return figures


def of_depth(layers: int, devices: int) -> dict[str, Figures]:
    """The figures of each system, and of a second process that finds what the first has kept."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder, "cache")
        if cache_dir().exists():  # with the executor
            shutil.copytree(cache_dir(), kept, ignore=shutil.ignore_patterns("plans"))
        found = {system: in_process(system, layers, devices, kept) for system in SYSTEMS}
        return {**found, "again": in_process("tpfx", layers, devices, kept)}


def after_capture(stages: Mapping[str, float]) -> float:
    """The seconds of everything that tpfx does with what was captured, but for running it."""
    return sum(seconds for name, seconds in stages.items() if name not in (*CAPTURE, "runs"))


def table(devices: int, found: Mapping[int, Mapping[str, Figures]]) -> Table:
    """A row for each stage, a column for each depth."""
    made = Table(
        title=f"from compile to the end of generate: {devices} devices, {TOKENS} tokens, CPU seconds"
    )
    made.add_column("")
    for depth in found:
        made.add_column(f"{depth} layers", justify="right")
    for stage in dict.fromkeys(name for one in found.values() for name in one["tpfx"]["stages"]):
        made.add_row(stage, *(f"{one['tpfx']['stages'].get(stage, 0.0):.2f}" for one in found.values()))
    made.add_section()
    rows: dict[str, Callable[[Mapping[str, Figures]], str]] = {
        "after capture": lambda one: f"{after_capture(one['tpfx']['stages']):.2f}",
        "all": lambda one: f"{one['tpfx']['seconds']:.2f}",
        "aot_eager": lambda one: f"{one['aot_eager']['seconds']:.2f}",
        "of aot_eager's": lambda one: f"{one['tpfx']['seconds'] / one['aot_eager']['seconds']:.2f}",
        "a second process": lambda one: f"{one['again']['seconds']:.2f}",
        "of aot_eager's then": lambda one: f"{one['again']['seconds'] / one['aot_eager']['seconds']:.2f}",
        "graphs captured by compile": lambda one: str(one["tpfx"]["graphs"].get("compile", 0)),
        "by generate": lambda one: str(one["tpfx"]["graphs"].get("generate", 0)),
        "by aot_eager": lambda one: str(one["aot_eager"]["graphs"].get("generate", 0)),
    }
    for name, cell in rows.items():
        made.add_row(name, *map(cell, found.values()))
    return made


def main(
    layers: Annotated[list[int] | None, typer.Option(help="depths; 4, 8, 16 and 32 if left out")] = None,
    devices: Annotated[int, typer.Option(min=1)] = 2,
    only: Annotated[str | None, typer.Option(help="one system, in this process, of the first depth")] = None,
    json_file: JsonFile = None,
) -> None:
    """Count the CPU seconds of a cold start."""
    depths = sorted(layers or [4, 8, 16, 32])
    if only is not None:
        if only not in SYSTEMS:
            raise typer.BadParameter(f"no system {only!r}; there are {', '.join(SYSTEMS)}")
        write_figures(measure(only, depths[0], devices), json_file or STANDARD_OUTPUT)
        return
    console: Console = console_beside(json_file)
    found: dict[int, dict[str, Figures]] = {}
    for depth in depths:
        found[depth] = of_depth(depth, devices)
    console.print(table(devices, found))
    write_figures({"devices": devices, "depths": found}, json_file)


if __name__ == "__main__":
    typer.run(main)
