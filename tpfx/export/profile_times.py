"""Where the seconds went: by rank, and by module of the model.

layers = layers_of(graphs)
ranks_of(graphs, layers, seconds)[1].waiting
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .timeline import GraphRuns, RankRuns

NANO = 1e-9


@dataclass(frozen=True)
class RankTimes:
    """What a rank did all the while: the last four add up to the profile's `seconds`.

    Attributes:
        rank: which.
        device: where it runs.
        compute: seconds of ops.
        collectives: seconds of collectives, once all ranks had come to them.
        waiting: seconds until they had, and at the end of a graph until all were done.
        outside: seconds outside of the graphs: Python, what surrounds the model, handing values over.
    """

    rank: int
    device: str
    compute: float
    collectives: float
    waiting: float
    outside: float


@dataclass(frozen=True)
class LayerTimes:
    """What a module took in all runs of one phase, in seconds; lists have a number for each rank.

    Attributes:
        module: its path in the model; "" for the model itself.
        phase: "forward" or "backward".
        ops: what it does, each once, as people call it: "linear", "all_reduce".
        compute: of its ops.
        collectives: of its collectives, once all ranks had come to them.
        waiting: until they had; of the model itself also until all ranks were done.
        estimated_compute: what the plan had for its ops.
        estimated_collectives: and for its collectives, on every rank.
    """

    module: str
    phase: str
    ops: list[str] = field(default_factory=list)
    compute: list[float] = field(default_factory=list)
    collectives: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    estimated_compute: list[float] = field(default_factory=list)
    estimated_collectives: list[float] = field(default_factory=list)

    @property
    def has_any(self) -> bool:
        """Whether anything was measured, or estimated."""
        measured = (*self.compute, *self.collectives, *self.waiting)
        return any((*measured, *self.estimated_compute, *self.estimated_collectives))

    @staticmethod
    def of(module: str, phase: str, ranks: int) -> LayerTimes:
        """Nothing yet."""
        return LayerTimes(module, phase, [], *([0.0] * ranks for _ in range(5)))


class _Layers:
    """Adds up by phase and module."""

    def __init__(self, ranks: int) -> None:
        self._ranks, self.found = ranks, dict[tuple[str, str], LayerTimes]()

    def __call__(self, phase: str, module: str) -> LayerTimes:
        made = LayerTimes.of(module, phase, self._ranks)
        return self.found.setdefault((phase, module), made)

    def add(self, graph: GraphRuns, at: int, one: RankRuns, waited: Sequence[float]) -> None:
        """What a rank did."""
        for op, spent, waits in zip(one.ops, one.took.sum(0).tolist(), waited, strict=True):
            layer = self(graph.phase, op.module)
            if op.op not in layer.ops:
                layer.ops.append(op.op)
            (layer.collectives if op.collective else layer.compute)[at] += (spent - waits) * NANO
            layer.waiting[at] += waits * NANO
        tail = float((one.over - one.starts[:, -1]).sum())
        self(graph.phase, "").waiting[at] += tail * NANO

    def add_estimates(self, graph: GraphRuns) -> None:
        """What was estimated of as many runs, of a module that has no op of its own with what it lies in."""
        known = {op.module for one in graph.ranks for op in one.ops}
        for module, one in graph.estimated.items():
            while module and module not in known:
                module = module.rpartition(".")[0]
            layer = self(graph.phase, module)
            for at, runs in enumerate(graph.ranks):  # those of other processes may be missing
                layer.estimated_compute[at] += one.compute[runs.rank] * graph.count
                layer.estimated_collectives[at] += one.collectives * graph.count


def layers_of(graphs: Sequence[GraphRuns]) -> list[LayerTimes]:
    """What each module took, in the order in which they first ran."""
    layers = _Layers(len(graphs[0].ranks) if graphs else 0)
    for graph in graphs:
        for at, (one, waited) in enumerate(zip(graph.ranks, graph.waited(), strict=True)):
            layers.add(graph, at, one, waited.sum(0).tolist())
        layers.add_estimates(graph)
    return [one for one in layers.found.values() if one.has_any]


def ranks_of(graphs: Sequence[GraphRuns], layers: Sequence[LayerTimes], seconds: float) -> list[RankTimes]:
    """What each rank did in so many seconds."""
    made = []
    for at, one in enumerate(graphs[0].ranks if graphs else ()):
        compute = sum(layer.compute[at] for layer in layers)
        collectives = sum(layer.collectives[at] for layer in layers)
        waiting = sum(layer.waiting[at] for layer in layers)
        outside = seconds - compute - collectives - waiting
        made.append(RankTimes(one.rank, one.device, compute, collectives, waiting, outside))
    return made
