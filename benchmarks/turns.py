"""Measuring several systems in turns, a b c a b c …, so that whatever else the machine does hits all alike.

measured = measure({"whole": system, "split": other}, ("decode",), rounds=5, others=None, tell=print)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import transformers

from .others import LOUD, Others
from .phases import PHASES, bytes_held

BASELINE = "unsharded, 1 thread"
ATTEMPTS = 3  # turns that are taken again while other processes keep disturbing them
WARM_UP = 2  # rounds: the first compiles, and the second what only comes up then


class System(Protocol):
    """Something that is measured."""

    def measure(self, phase: str) -> float:
        """Seconds of one measurement of a phase."""

    def held(self) -> list[int]:
        """Bytes of weights, gradients and the optimizer's state on each device."""


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

    def held(self) -> list[int]:
        """Bytes on each device while it trains."""
        return bytes_held(self.model)


@dataclass
class Measured:
    """Seconds of every system in every phase; `others`: how many cores other processes used in each turn."""

    samples: dict[str, dict[str, list[float]]]
    others: list[float]


def measure(
    systems: Mapping[str, System],
    phases: Sequence[str],
    rounds: int,
    others: Others | None,
    tell: Callable[[str], None],
) -> Measured:
    """Measure every system in every phase."""
    measured = Measured({name: {phase: [] for phase in phases} for name in systems}, [])
    for index in range(rounds):
        for phase in phases:
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


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"cpus": os.cpu_count(), "load": load, **versions}
