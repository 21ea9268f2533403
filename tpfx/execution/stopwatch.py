"""Notes when the ops of the ranks' graphs start, in all runs while it is on.

with Stopwatch([mesh]) as watch:
    model(x)
watch.seconds      # from begin to end; watch.compiling of these, capturing and planning included
watch.logs         # of each graph that has run a Log: its runs, and the times of each rank

Where none is on, a run asks whether that is so, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any

import torch

from ..console.progress import LISTENERS, working
from ..errors import WorkerError
from ..kernels.stamps import Timed, Times
from ..native.rank_program import RankProgram
from ..native.timing import timed, untimed
from ..runtime.mesh import Mesh
from ..workers.worker_runtime import WorkerRuntime

if TYPE_CHECKING:
    from .ranks import Ranks

# Those that are on; the newest that watches a mesh has its runs.
_ON: list[Stopwatch] = []


@dataclass
class Log:
    """The runs of one graph.

    Attributes:
        ranks: what ran it.
        runs: of each run when the caller began it, and when it was over.
        times: of each rank of this process, the nodes that are timed, and when they started; see `Times`.
    """

    ranks: Ranks
    runs: list[tuple[int, int]] = field(default_factory=list)
    times: list[Times] = field(default_factory=list)

    def add(self, times: Sequence[Times], count: int) -> None:
        """What the ranks have noted of the last `count` runs; some have noted one more, which failed."""
        if count:
            before = self.times or [(names, found[:0]) for names, found in times]
            self.times = [
                (names, torch.cat([known, found[:count]]))
                for (_, known), (names, found) in zip(before, times, strict=True)
            ]


class Stopwatch:
    """Notes times of the runs of graphs on some meshes, or on all.

    Args:
        meshes: which; None for all.

    Attributes:
        start: when it began, in nanoseconds of `time.perf_counter_ns`.
        seconds: until it ended.
        compiling: seconds of these in which something was captured, planned or compiled.
    """

    def __init__(self, meshes: Collection[Mesh] | None = None) -> None:
        self._meshes = meshes
        self.start, self.seconds, self.compiling = 0, 0.0, 0.0
        self._tasks: dict[working, float] = {}  # what is being done, and since when
        self._logs: dict[Ranks, Log] = {}
        self._noted: dict[Ranks, int] = {}  # of those that are timed now, how many runs they have noted

    @property
    def logs(self) -> list[Log]:
        """Of the graphs that have run, in the order of their first runs."""
        return [log for log in self._logs.values() if log.runs]

    def __enter__(self) -> Stopwatch:
        LISTENERS.append(self)
        _ON.append(self)
        self.start = perf_counter_ns()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = (perf_counter_ns() - self.start) / 1e9
        _ON.remove(self)
        LISTENERS.remove(self)
        for ranks in list(self._noted):
            with ranks.runtime.alone():
                self.release(ranks)

    def begin(self, task: working) -> None:
        """Something is captured, planned or compiled."""
        self._tasks[task] = perf_counter()

    def end(self, task: working) -> None:
        """It has ended; what lies within something else counts once."""
        begun = self._tasks.pop(task, None)
        if begun is not None and not self._tasks:
            self.compiling += perf_counter() - begun

    def watches(self, mesh: Mesh) -> bool:
        """Whether it notes what runs on a mesh."""
        return self._meshes is None or any(mesh is one for one in self._meshes)

    def run(self, ranks: Ranks, carry_out: Callable[[], Any]) -> Any:
        """What a run of a graph returns."""
        with ranks.runtime.alone():  # threads may call at once: the runs of a graph go one after another
            self._take(ranks)
            log, start = self._logs.setdefault(ranks, Log(ranks)), perf_counter_ns()
            try:
                results = carry_out()
            except BaseException:
                self.release(ranks)
                raise
            log.runs.append((start, perf_counter_ns()))
            self._noted[ranks] += 1
            return results

    def _take(self, ranks: Ranks) -> None:
        """Have a graph's ranks note times for this one."""
        if ranks.watch is self:
            return
        if ranks.watch is not None:
            ranks.watch.release(ranks)
        mesh, here = ranks.runtime.mesh, _here(ranks)
        for at, rank in enumerate(mesh.owned[:here]):
            gpu = mesh.devices[rank] if mesh.devices[rank].type == "cuda" else None
            ranks.forwards[at] = timed(ranks.forwards[at], gpu)
        if isinstance(ranks.runtime, WorkerRuntime):
            ranks.runtime.time(ranks.forwards[here:])
        ranks.watch, self._noted[ranks] = self, 0

    def release(self, ranks: Ranks) -> None:
        """Have them note none any more, and keep what they have noted."""
        count, here, times = self._noted.pop(ranks), _here(ranks), list[Times]()
        ranks.watch = None
        for at, forward in enumerate(ranks.forwards[:here]):
            assert isinstance(forward, (RankProgram, Timed))
            times.append(forward.take_times())
            ranks.forwards[at] = untimed(forward)
        log = self._logs.setdefault(ranks, Log(ranks))
        try:
            if isinstance(ranks.runtime, WorkerRuntime):
                times += ranks.runtime.times(ranks.forwards[here:])
            log.add(times, count)
        except WorkerError:  # the processes have ended, and with them what they have noted
            del log.runs[len(log.runs) - count :]


def _here(ranks: Ranks) -> int:
    """How many of a graph's ranks run in this process."""
    return 1 if isinstance(ranks.runtime, WorkerRuntime) else len(ranks.forwards)


def watch_of(mesh: Mesh) -> Stopwatch | None:
    """What notes the runs on a mesh, if anything does."""
    if not _ON:
        return None
    return next((one for one in reversed(_ON) if one.watches(mesh)), None)
