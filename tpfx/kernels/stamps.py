"""When the ops of a rank's graph start, noted from Python, where no native program runs it.

    timed = TimedCode(module)           # the graph op by op, as code_of(module) runs it
    timed(*inputs)
    names, runs = timed.take_times()    # of each run the start of each op, and the end of the last

    timed = TimedWhole(compiled)        # compiled code: its collectives, and what lies between them

Nanoseconds of `time.perf_counter_ns`, as those of `RankProgram.take_times` are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from time import perf_counter_ns
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..torch_internals.fx import LazyGraphModule, code_of

# The names of a graph's nodes, one for each op that is timed, and a row for each run: when each began, and
# when the last had ended.
Times = tuple[Sequence[str], torch.Tensor]

# What a collective is called in code that has no nodes any more, and what is between two.
COLLECTIVE, BETWEEN = "<collective>", "<between>"


class _Run:
    """A run that is timed, in the thread that runs it."""

    def __init__(self, gpu: torch.device | None, whole: bool) -> None:
        self.gpu, self.whole, self.times = gpu, whole, list[int]()

    def note(self) -> None:
        """Now, after what a GPU has been given."""
        if self.gpu is not None:
            torch.cuda.current_stream(self.gpu).synchronize()
        self.times.append(perf_counter_ns())


_RUN: ContextVar[_Run | None] = ContextVar("_RUN", default=None)  # of this thread


def stamp() -> None:
    """What a graph that is timed calls before each op."""
    run = _RUN.get()
    assert run is not None, "only TimedCode has such graphs"
    run.note()


def stamp_collective() -> None:
    """What a collective calls as it begins and ends, for code that is timed as a whole."""
    run = _RUN.get()
    if run is not None and run.whole:
        run.note()


class Timed:
    """A rank's code, of whose runs times are noted.

    Args:
        plain: what runs the rank's graph otherwise.
        code: what runs it now.
        gpu: where it runs, if on one, which is waited for.
    """

    whole = False
    names: Sequence[str] = ()

    def __init__(
        self, plain: Callable[..., Any], code: Callable[..., Any], gpu: torch.device | None = None
    ) -> None:
        self.plain, self.code, self.gpu = plain, code, gpu
        self._runs: list[list[int]] = []

    def __call__(self, *args: Any) -> Any:
        """What the code returns."""
        run = _Run(self.gpu, self.whole)
        before = _RUN.set(run)
        try:
            if self.whole:
                run.note()
            results = self.code(*args)
            run.note()
        finally:
            _RUN.reset(before)
        self._runs.append(run.times)
        return results

    def take_times(self) -> Times:
        """What has been noted since it was asked for before."""
        return self.names, self._taken()

    def _taken(self) -> torch.Tensor:
        runs, self._runs = self._runs, []
        return torch.tensor(runs, dtype=torch.int64, device="cpu").view(len(runs), -1 if runs else 1)


class TimedCode(Timed):
    """A graph run op by op from Python."""

    def __init__(self, module: GraphModule, gpu: torch.device | None = None) -> None:
        graph, self.names = _stamped(module.graph)
        super().__init__(code_of(module), code_of(LazyGraphModule(module, graph)), gpu)


class TimedWhole(Timed):
    """Compiled code: between the first and the last time are those of its collectives, if they are seen."""

    whole = True

    def __init__(self, code: Callable[..., Any], gpu: torch.device | None = None) -> None:
        super().__init__(code, code, gpu)

    def take_times(self) -> Times:
        """What has been noted since it was asked for before."""
        if len({len(times) for times in self._runs}) > 1:  # a loop inside may have had collectives
            self._runs = [[times[0], times[-1]] for times in self._runs]
        runs = self._taken()
        return [COLLECTIVE if at % 2 else BETWEEN for at in range(runs.shape[1] - 1)], runs


def _stamped(graph: Graph) -> tuple[Graph, list[str]]:
    """A copy of a graph that calls `stamp` before each op, and the names of the ops."""
    made, names = Graph(), list[str]()
    known: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            made.call_function(stamp)
            names.append(node.name)
        known[node] = made.node_copy(node, known.__getitem__)
    return made, names
