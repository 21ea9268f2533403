"""How fast a split model reads a prompt and writes tokens, next to the unsharded one and the closest peer.

    python -m benchmarks.generate --model llama --devices 2 --json figures.json

Random weights, batch 1, CPU devices of one thread each. The systems are measured in turns, once a round each,
after warm-up rounds in which everything is compiled. The peer's environment is made at the first run, unless
--no-peer is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

import tpfx
from tpfx.lowering.device_compiler import DEVICE_COMPILERS

from .models import build, config, prompt
from .options import (
    Devices,
    JsonFile,
    Models,
    Patience,
    Prompt,
    Repeats,
    WithPeer,
    console_beside,
    write_figures,
)
from .others import Others
from .peer import Peer
from .phases import BEAMS, WRITING, tokens
from .samples import Spread, ratios_of, speedup_table
from .turns import BASELINE, WARM_UP, Local, System, machine, measure


def same_tokens(one: Local, other: Local, count: int = 12) -> bool:
    """Whether two models write the same text, greedily and with beams."""
    with torch.no_grad():
        texts = [[tokens(system.model, system.ids, count, n) for n in (1, BEAMS)] for system in (one, other)]
    return all(torch.equal(mine, theirs) for mine, theirs in zip(*texts, strict=True))


def _named(devices: int, compiler: str, processes: bool = False) -> str:
    return f"tpfx, {devices} {'processes' if processes else 'devices'}, {compiler}"


def _ways(compilers: Sequence[str], processes: bool) -> list[tuple[str, bool]]:
    """What runs the ranks, and whether they are processes: Inductor's code runs in threads alone."""
    apart = [(compiler, True) for compiler in compilers if processes and compiler != "inductor"]
    return [*((compiler, False) for compiler in compilers), *apart]


@contextmanager
def running(
    shape: dict[str, Any],
    devices: int,
    length: int,
    compilers: Sequence[str],
    processes: bool,
    peer: bool,
    tell: Callable[[str], None],
) -> Iterator[dict[str, System]]:
    """The systems, ready to be measured but cold."""
    ids = prompt(length)
    whole = build(config(**shape))
    systems: dict[str, System] = {BASELINE: Local(whole, 1, ids)}
    if devices > 1:
        systems[f"unsharded, {devices} threads"] = Local(whole, devices, ids)
    torch.set_num_threads(devices)  # each rank gets its part of them
    for compiler, apart in _ways(compilers, processes):
        tell(f"compiling, {compiler}")
        given = {"device_compiler": compiler, "processes": apart}
        split = tpfx.compile(build(config(**shape)), ["cpu"] * devices, **given)
        systems[_named(devices, compiler, apart)] = Local(split, 1, ids)  # one thread between graphs as well
    if not peer:
        yield systems
        return
    tell("starting tensor_parallel")
    other = Peer(devices, shape, 1, length)
    systems[f"tensor_parallel, {devices} devices"] = other
    try:
        yield systems
    finally:
        other.close()


def run(
    shape: dict[str, Any],
    devices: int,
    length: int,
    rounds: int,
    patience: float,
    compilers: Sequence[str],
    processes: bool,
    peer: bool,
    console: Console,
) -> dict[str, Any]:
    """Measure one model, print its table, and return all figures."""
    with (
        console.status("building") as status,
        running(shape, devices, length, compilers, processes, peer, status.update) as systems,
    ):
        local = {name: system for name, system in systems.items() if isinstance(system, Local)}
        split = {name: one for name, one in local.items() if name.startswith("tpfx")}
        measure(systems, WRITING, WARM_UP, None, lambda text: status.update(f"warming up, {text}"))
        same = all(same_tokens(local[BASELINE], one) for one in split.values())
        before = {name: tpfx.report(one.model).graphs for name, one in split.items()}
        measured = measure(systems, WRITING, rounds, Others(patience), status.update)
        late = sum(tpfx.report(one.model).graphs - before[name] for name, one in split.items())
    title = ", ".join(f"{key} {value}" for key, value in shape.items())
    console.print(speedup_table(f"{title}, prompt {length}", measured.samples, BASELINE))
    console.print(f"tokens of the split models: {'the same as' if same else 'DIFFERENT from'} the unsharded")
    console.print(f"cores that other processes used meanwhile: {Spread.of(measured.others)}")
    if late:
        console.print(f"{late} graphs were compiled while the clock ran: these figures mean nothing")
    return {
        "shape": shape,
        "same_tokens": same,
        "late_graphs": late,
        "others": measured.others,
        "seconds": measured.samples,
        "speedup": ratios_of(measured.samples, BASELINE),
    }


def main(
    model: Models = None,
    devices: Devices = 2,
    repeats: Repeats = 5,
    patience: Patience = 120.0,
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    kv_heads: Annotated[int | None, typer.Option(help="of llama; as many as heads if left out")] = None,
    prompt: Prompt = 64,
    device_compiler: Annotated[
        list[str] | None, typer.Option(help="native, inductor or eager; may be repeated; all if left out")
    ] = None,
    processes: Annotated[
        bool, typer.Option(help="measure ranks that are processes as well, beside threads")
    ] = False,
    peer: WithPeer = True,
    json_file: JsonFile = None,
) -> None:
    """Time prefill, decode and beam search of unsharded and split models, in turns."""
    console = console_beside(json_file)
    figures, compilers = [], device_compiler or DEVICE_COMPILERS
    for name in model or ["llama"]:
        shape: dict[str, Any] = {"name": name, "layers": layers, "hidden": hidden, "heads": heads}
        if kv_heads is not None and name == "llama":
            shape["kv_heads"] = kv_heads
        figures.append(run(shape, devices, prompt, repeats, patience, compilers, processes, peer, console))
    measured = {"devices": devices, "prompt": prompt, "machine": machine(), "models": figures}
    write_figures(measured, json_file)


if __name__ == "__main__":
    typer.run(main)
