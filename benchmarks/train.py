"""How fast a split model trains, and what each device holds, next to the unsharded one and the closest peer.

    python -m benchmarks.train --model llama --devices 2 --json figures.json

Random weights, float32, AdamW, CPU devices of one thread each. The systems are measured in turns, once a
round each, after warm-up rounds in which everything is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import tpfx

from .models import build, config, prompt
from .options import Devices, JsonFile, Models, Patience, Repeats, WithPeer, console_beside, write_figures
from .others import Others
from .peer import Peer
from .phases import TRAINING
from .samples import Spread, ratios_of, speedup_table
from .turns import BASELINE, WARM_UP, Local, System, machine, measure


@contextmanager
def running(
    shape: dict[str, Any], devices: int, ids: torch.Tensor, peer: bool, tell: Callable[[str], None]
) -> Iterator[dict[str, System]]:
    """The systems, ready to be measured but cold."""
    whole = build(config(**shape)).train()
    systems: dict[str, System] = {BASELINE: Local(whole, 1, ids)}
    if devices > 1:
        systems[f"unsharded, {devices} threads"] = Local(whole, devices, ids)
    torch.set_num_threads(devices)  # each rank gets its part of them
    tell("compiling")
    split = tpfx.compile(build(config(**shape)).train(), ["cpu"] * devices)
    systems[f"tpfx, {devices} devices"] = Local(split, 1, ids)  # one thread between the graphs as well
    other = None
    if peer:
        tell("starting tensor_parallel")
        other = systems[f"tensor_parallel, {devices} devices"] = Peer(devices, shape, *ids.shape)
    try:
        yield systems
    finally:
        if other is not None:
            other.close()


def run(
    shape: dict[str, Any],
    devices: int,
    ids: torch.Tensor,
    rounds: int,
    patience: float,
    peer: bool,
    console: Console,
) -> dict[str, Any]:
    """Measure one model, print its tables, and return all figures."""
    with (
        console.status("building") as status,
        running(shape, devices, ids, peer, status.update) as systems,
    ):
        measure(systems, TRAINING, WARM_UP, None, lambda text: status.update(f"warming up, {text}"))
        measured = measure(systems, TRAINING, rounds, Others(patience), status.update)
        held = {name: system.held() for name, system in systems.items()}
        split = systems[f"tpfx, {devices} devices"]
        assert isinstance(split, Local)
        graphs = tpfx.report(split.model).graphs
    title = ", ".join(f"{key} {value}" for key, value in shape.items())
    batch, length = ids.shape
    console.print(speedup_table(f"{title}, batch {batch}, length {length}", measured.samples, BASELINE))
    console.print(held_table(held))
    console.print(f"cores that other processes used meanwhile: {Spread.of(measured.others)}")
    if graphs != 1:
        console.print(f"{graphs} graphs were compiled, not one: the figures may hold compile time")
    return {
        "shape": shape,
        "graphs": graphs,
        "others": measured.others,
        "seconds": measured.samples,
        "speedup": ratios_of(measured.samples, BASELINE),
        "bytes_held": held,
    }


def held_table(held: dict[str, list[int]]) -> Table:
    """What each system's devices hold between two steps."""
    whole = sum(held[BASELINE])
    table = Table(title="weights, gradients and AdamW's state on each device")
    table.add_column("system")
    table.add_column("MiB", justify="right")
    table.add_column("largest, of the unsharded", justify="right")
    for name, sizes in held.items():
        table.add_row(name, ", ".join(f"{size / 2**20:,.1f}" for size in sizes), f"{max(sizes) / whole:.1%}")
    return table


def main(
    model: Models = None,
    devices: Devices = 2,
    repeats: Repeats = 5,
    patience: Patience = 120.0,
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    batch: Annotated[int, typer.Option(min=1)] = 2,
    length: Annotated[int, typer.Option(min=1, help="tokens of each text")] = 128,
    peer: WithPeer = True,
    json_file: JsonFile = None,
) -> None:
    """Time training steps of unsharded and split models, in turns."""
    console = console_beside(json_file)
    figures = []
    for name in model or ["llama"]:
        shape: dict[str, Any] = {"name": name, "layers": layers, "hidden": hidden, "heads": heads}
        figures.append(run(shape, devices, prompt(length, batch), repeats, patience, peer, console))
    write_figures({"devices": devices, "machine": machine(), "models": figures}, json_file)


if __name__ == "__main__":
    typer.run(main)
