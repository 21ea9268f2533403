"""How fast a split model reads a prompt and writes tokens, next to the unsharded one and the closest peer.

    python -m benchmarks.generate --model llama --devices 2 --json figures.json

Random weights, batch 1, CPU devices of one thread each. The systems are measured in turns, once a round each,
after warm-up rounds in which everything is compiled. The peer's environment is made at the first run, unless
--no-peer is given.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
import transformers
import typer
from rich.console import Console

import tpfx

from .models import build, config, prompt
from .others import LOUD, Others
from .peer import Peer
from .phases import BEAMS, PHASES, tokens
from .samples import Spread, speedup_table, speedups

BASELINE = "unsharded, 1 thread"
ATTEMPTS = 3  # turns that are taken again while other processes keep disturbing them
WARM_UP = 2  # rounds: the first compiles, and the second what only comes up then


class System(Protocol):
    """Something that is measured."""

    def measure(self, phase: str) -> float:
        """Seconds of one measurement of a phase."""


@dataclass
class Local:
    """A model in this process; `threads` is what PyTorch is told before it runs."""

    model: Any
    threads: int
    ids: torch.Tensor

    def measure(self, phase: str) -> float:
        """Seconds of one measurement of a phase."""
        torch.set_num_threads(self.threads)
        return PHASES[phase](self.model, self.ids)


@dataclass
class Measured:
    """Seconds of every system in every phase; `others`: how many cores other processes used in each turn."""

    samples: dict[str, dict[str, list[float]]]
    others: list[float]


def measure(
    systems: Mapping[str, System], rounds: int, others: Others | None, tell: Callable[[str], None]
) -> Measured:
    """Measure every system in every phase, in turns: a b c a b c …"""
    measured = Measured({name: {phase: [] for phase in PHASES} for name in systems}, [])
    for index in range(rounds):
        for phase in PHASES:
            what = f"round {index + 1} of {rounds}: {phase}"
            busy, seconds = _quietest(systems, phase, others, partial(_tell, tell, what))
            measured.others.append(busy)
            for name in systems:
                measured.samples[name][phase].append(seconds[name])
    return measured


def _quietest(
    systems: Mapping[str, System], phase: str, others: Others | None, tell: Callable[[str], None]
) -> tuple[float, dict[str, float]]:
    """One turn of all systems, taken again where others disturb it, and how many cores those used."""
    turns: list[tuple[float, dict[str, float]]] = []
    while not turns or (others is not None and turns[-1][0] > LOUD and len(turns) < ATTEMPTS):
        if others is not None:
            tell("waiting for other processes")
            others.wait()
            others.cores()
        seconds = {}
        for name, system in systems.items():
            tell(name)
            seconds[name] = system.measure(phase)
        turns.append((others.cores() if others is not None else 0.0, seconds))
    return min(turns, key=lambda turn: turn[0])


def _tell(tell: Callable[[str], None], what: str, more: str) -> None:
    tell(f"{what}, {more}")


def same_tokens(one: Local, other: Local, count: int = 12) -> bool:
    """Whether two models write the same text, greedily and with beams."""
    with torch.no_grad():
        texts = [[tokens(system.model, system.ids, count, n) for n in (1, BEAMS)] for system in (one, other)]
    return all(torch.equal(mine, theirs) for mine, theirs in zip(*texts, strict=True))


@contextmanager
def running(
    shape: dict[str, Any], devices: int, length: int, peer: bool, tell: Callable[[str], None]
) -> Iterator[dict[str, System]]:
    """The systems, ready to be measured but cold."""
    ids = prompt(length)
    whole = build(config(**shape))
    systems: dict[str, System] = {BASELINE: Local(whole, 1, ids)}
    if devices > 1:
        systems[f"unsharded, {devices} threads"] = Local(whole, devices, ids)
    torch.set_num_threads(devices)  # each rank gets its part of them
    tell("compiling")
    split = tpfx.compile(build(config(**shape)), ["cpu"] * devices)
    systems[f"tpfx, {devices} devices"] = Local(split, 1, ids)  # one thread between the graphs as well
    if not peer:
        yield systems
        return
    tell("starting tensor_parallel")
    other = Peer(devices, length, shape)
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
    peer: bool,
    console: Console,
) -> dict[str, Any]:
    """Measure one model, print its table, and return all figures."""
    with (
        console.status("building") as status,
        running(shape, devices, length, peer, status.update) as systems,
    ):
        split = systems[f"tpfx, {devices} devices"]
        whole = systems[BASELINE]
        assert isinstance(split, Local) and isinstance(whole, Local)
        measure(systems, WARM_UP, None, lambda text: status.update(f"warming up, {text}"))
        same = same_tokens(whole, split)
        before = tpfx.report(split.model).graphs
        measured = measure(systems, rounds, Others(patience), status.update)
        late = tpfx.report(split.model).graphs - before
    title = ", ".join(f"{key} {value}" for key, value in shape.items())
    console.print(speedup_table(f"{title}, prompt {length}", measured.samples, BASELINE))
    console.print(f"tokens of the split model: {'the same as' if same else 'DIFFERENT from'} the unsharded")
    console.print(f"cores that other processes used meanwhile: {Spread.of(measured.others)}")
    if late:
        console.print(f"{late} graphs were compiled while the clock ran: these figures mean nothing")
    ratios = {
        name: {phase: _as_dict(spread) for phase, spread in phases.items()}
        for name, phases in speedups(measured.samples, BASELINE).items()
    }
    return {
        "shape": shape,
        "same_tokens": same,
        "late_graphs": late,
        "others": measured.others,
        "seconds": measured.samples,
        "speedup": ratios,
    }


def _as_dict(spread: Spread) -> dict[str, float]:
    return {"median": spread.median, "low": spread.low, "high": spread.high}


def main(
    model: Annotated[list[str] | None, typer.Option(help="llama, opt or gpt2; may be repeated")] = None,
    devices: Annotated[int, typer.Option(min=1, help="CPU devices, one thread each")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="rounds that are timed")] = 5,
    patience: Annotated[float, typer.Option(help="seconds to wait for other processes, in all")] = 120.0,
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    kv_heads: Annotated[int | None, typer.Option(help="of llama; as many as heads if left out")] = None,
    prompt: Annotated[int, typer.Option(min=1, help="tokens of the prompt")] = 64,
    peer: Annotated[bool, typer.Option(help="measure the library tensor_parallel too")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all figures to this file")] = None,
) -> None:
    """Time prefill, decode and beam search of unsharded and split models, in turns."""
    console = Console(file=sys.stderr if json_file == Path("-") else sys.stdout, highlight=False)
    figures = []
    for name in model or ["llama"]:
        shape: dict[str, Any] = {"name": name, "layers": layers, "hidden": hidden, "heads": heads}
        if kv_heads is not None and name == "llama":
            shape["kv_heads"] = kv_heads
        figures.append(run(shape, devices, prompt, repeats, patience, peer, console))
    if json_file is not None:
        text = json.dumps(
            {"devices": devices, "prompt": prompt, "machine": _machine(), "models": figures}, indent=1
        )
        print(text) if json_file == Path("-") else json_file.write_text(text + "\n")


def _machine() -> dict[str, Any]:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"cpus": os.cpu_count(), "load": load, **versions}


if __name__ == "__main__":
    typer.run(main)
