"""What runs the ranks: threads or processes, eager ops or Inductor's code; next to transformers' own split.

    python -m benchmarks.engines --devices 2 --json figures.json

One Llama of random weights, batch 1, CPU devices of one thread each. The systems are measured in turns,
once a round each, after warm-up rounds in which everything is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import torch
import typer
from rich.console import Console

import tpfx

from .models import build, config, prompt
from .options import Devices, JsonFile, Patience, Prompt, Repeats, console_beside, write_figures
from .others import Others
from .phases import BEAMS, WRITING, tokens
from .ranks import Ranks
from .samples import Spread, ratios_of, speedup_table
from .turns import BASELINE, WARM_UP, Local, System, machine, measure

TP_PLAN = "transformers tp_plan, processes"


@contextmanager
def running(
    shape: dict[str, Any], devices: int, length: int, tell: Callable[[str], None]
) -> Iterator[dict[str, System]]:
    """The systems, ready to be measured but cold."""
    ids = prompt(length)
    systems: dict[str, System] = {BASELINE: Local(build(config(**shape)), 1, ids)}
    with ExitStack() as stack:
        for compiler in ("native", "eager", "inductor"):
            tell(f"compiling, {compiler}")
            torch.set_num_threads(devices)  # each rank gets its part of them
            model = tpfx.compile(build(config(**shape)), ["cpu"] * devices, device_compiler=compiler)
            systems[f"tpfx, threads, {compiler}"] = Local(model, 1, ids)
            ranks = Ranks("tpfx", devices, shape, 1, length, device_compiler=compiler)
            systems[f"tpfx, processes, {compiler}"] = stack.enter_context(closing(ranks))
        tell("starting transformers' tp_plan")
        ranks = Ranks("tp_plan", devices, shape, 1, length)
        systems[TP_PLAN] = stack.enter_context(closing(ranks))
        yield systems


def other_texts(systems: dict[str, System], count: int = 12) -> list[str]:
    """The systems that do not write what the unsharded model writes, greedily or with beams."""
    written = {
        name: [_text(system, count, beams) for beams in (1, BEAMS)] for name, system in systems.items()
    }
    return [name for name, text in written.items() if text != written[BASELINE]]


def _text(system: Any, count: int, beams: int) -> list[list[int]]:
    if isinstance(system, Local):
        text: list[list[int]] = tokens(system.model, system.ids, count, beams).tolist()
        return text
    written: list[list[int]] = system.tokens(count, beams)
    return written


def run(
    shape: dict[str, Any], devices: int, length: int, rounds: int, patience: float, console: Console
) -> dict[str, Any]:
    """Measure the systems, print their table, and return all figures."""
    with (
        console.status("building") as status,
        running(shape, devices, length, status.update) as systems,
    ):
        measure(systems, WRITING, WARM_UP, None, lambda text: status.update(f"warming up, {text}"))
        different = other_texts(systems)
        measured = measure(systems, WRITING, rounds, Others(patience), status.update)
    title = ", ".join(f"{key} {value}" for key, value in shape.items())
    console.print(speedup_table(f"{title}, prompt {length}, {devices} devices", measured.samples, BASELINE))
    console.print(f"other tokens than the unsharded model's: {', '.join(different) or 'none'}")
    console.print(f"cores that other processes used meanwhile: {Spread.of(measured.others)}")
    return {
        "shape": shape,
        "devices": devices,
        "different": different,
        "others": measured.others,
        "seconds": measured.samples,
        "speedup": ratios_of(measured.samples, BASELINE),
        "machine": machine(),
    }


def main(
    devices: Devices = 2,
    repeats: Repeats = 5,
    patience: Patience = 120.0,
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    prompt: Prompt = 64,
    json_file: JsonFile = None,
) -> None:
    """Time prefill, decode and beam search on every engine, in turns."""
    console = console_beside(json_file)
    shape = {"name": "llama", "layers": layers, "hidden": hidden, "heads": heads}
    write_figures(run(shape, devices, prompt, repeats, patience, console), json_file)


if __name__ == "__main__":
    typer.run(main)
