"""What runs a graph on the ranks of this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.fx import Graph, GraphModule

from ..native.rank_program import RankProgram
from ..planning import Topology
from ..runtime.process_runtime import ProcessRuntime
from ..runtime.thread_runtime import Runtime
from ..workers.worker_runtime import WorkerRuntime
from .cuda_graphs import Recorder, Results
from .stopwatch import Stopwatch, watch_of

Columns = list[Sequence[Any]]  # of each argument, a value for each rank

# What records runs, and is told of each recording, or why there will be none.
Recording = tuple[Recorder, Callable[[str | None], None]]


@dataclass(frozen=True)
class Planned:
    """What the graphs of the ranks were made of.

    Attributes:
        graph: the parallel graph, or its forward or backward part.
        phase: "forward" or "backward".
        topology: what it was planned by.
    """

    graph: Graph
    phase: str
    topology: Topology


class Ranks:
    """The graphs of the ranks, each as its device compiler made it.

    Args:
        runtime: runs them.
        modules: the graphs.
        forwards: what the device compiler made of them.
        recording: how runs are recorded to be replayed, if they are.
        planned: what they were made of, for who wants to know.

    Attributes:
        watch: what notes the times of their ops, if anything does.
    """

    def __init__(
        self,
        runtime: Runtime | ProcessRuntime | WorkerRuntime,
        modules: Sequence[GraphModule],
        forwards: Sequence[Callable[..., Any]],
        recording: Recording | None = None,
        planned: Planned | None = None,
    ) -> None:
        self.runtime, self.modules, self.forwards = runtime, modules, list(forwards)
        self.recording, self.planned = recording, planned
        self.watch: Stopwatch | None = None
        # Of threads for native programs; on GPUs `run` also has the ranks' streams wait for the caller's.
        self._team = runtime if isinstance(runtime, Runtime) and not runtime.mesh.gpus else None
        self._programs = [one for one in forwards if isinstance(one, RankProgram)]

    def run(self, columns: Columns) -> Results:
        """The results of every rank; the columns are emptied as soon as the ranks have their arguments."""
        rows: list[tuple[Any, ...]] = list(zip(*columns, strict=True)) or [()] * len(self.forwards)
        columns.clear()
        watch = watch_of(self.runtime.mesh)
        return self._carry_out(rows) if watch is None else watch.run(self, partial(self._carry_out, rows))

    def _carry_out(self, rows: list[tuple[Any, ...]]) -> Results:
        """The same; the rows are emptied."""
        if isinstance(self.runtime, WorkerRuntime):
            return self.runtime.run_all(self.forwards, rows)
        if self._team is not None and len(self._programs) == len(rows):
            return self._team.run_programs(self._programs, rows)
        calls = [partial(forward, *row) for forward, row in zip(self.forwards, rows, strict=True)]
        rows.clear()
        return self.runtime.run(calls)
