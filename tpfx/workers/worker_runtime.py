"""The runtime of a model whose ranks are processes: the caller's runs the first rank, workers run the others.

    runtime = WorkerRuntime(mesh)
    programs = runtime.programs("native", modules[1:])      # of the other ranks
    results = runtime.run_all([first, *programs], rows)     # of every rank

When a rank raises, the others are released from their collectives, and the caller gets that rank's own
exception with a note where it happened. When a process ends, all do; the caller's memory has the weights.
"""

from __future__ import annotations

import itertools
import os
import pickle
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from torch.fx import GraphModule

from ..errors import RankAborted, WorkerError
from ..kernels.stamps import Times
from ..native.build import load
from ..native.rank_program import RankProgram
from ..runtime.mesh import Mesh
from ..runtime.shared_memory import SharedMeeting
from ..runtime.thread_runtime import PATIENCE, Runtime, raises_for_node
from ..torch_internals.distributed import settings
from .graph_text import dumps
from .groups import SharedGroups
from .shared_file import SharedFile
from .value_text import read_value, write_value
from .worker_process import WorkerProcess

REMEDY = "the model keeps its weights: tpfx.unshard(model) makes it whole, and it may be compiled again"

Failures = list[tuple[int, BaseException]]  # which rank has raised what


class _Failed(Exception):
    """Workers have raised something."""

    def __init__(self, failures: Failures) -> None:
        super().__init__()
        self.failures = failures


class RemoteProgram:
    """A rank's graph that its worker runs.

    Args:
        number: by which the worker knows it.
        rank: the rank.
    """

    def __init__(self, number: int, rank: int) -> None:
        self.number, self.rank = number, rank

    @raises_for_node
    def fail(self, error: BaseException, node: str | None) -> NoReturn:
        """Raise what the worker has raised, in a frame that `node_of` knows."""
        raise error

    def node_at(self, variables: dict[str, Any]) -> str | None:
        """The name of the node that has failed, in a frame of `fail` with these variables."""
        node: str | None = variables["node"]
        return node


class WorkerRuntime:
    """Runs the graph of the first rank here, and those of the others in processes that it starts.

    Args:
        mesh: the ranks.
        timeout: seconds that a rank waits for the others.

    Attributes:
        here: the same ranks, of which this process runs the first.

    Raises:
        NoExecutor: the extension cannot be built here.
    """

    def __init__(self, mesh: Mesh, timeout: float = 300.0) -> None:
        load()
        self.mesh, self.timeout = mesh, timeout
        self.here = Mesh(mesh.devices, (0,), mesh.names, apart=True)
        shared = SharedFile.create(mesh.size)
        self._arena, self._meeting = shared.open(self.here, timeout)
        self._first = Runtime(self.here, timeout, SharedGroups(self.here, self._meeting))
        threads = max(1, torch.get_num_threads() // mesh.size)
        self._workers = [
            WorkerProcess(mesh, rank, shared, self._arena, timeout, threads) for rank in range(1, mesh.size)
        ]
        self._leases = [load().Leases() for _ in self._workers]
        self._forgotten: list[list[int]] = [[] for _ in self._workers]
        self._numbers, self._runs = itertools.count(), itertools.count(1)
        self._settings: Any = None  # that the workers have
        self._lost: str | None = None
        self._under_way = False  # whether the workers may be in something
        self._finalizer = weakref.finalize(self, _end, self._workers, os.getpid())

    def programs(self, compiler: str, modules: Sequence[GraphModule]) -> list[RemoteProgram]:
        """Have the workers make programs of graphs, of one for each.

        Args:
            compiler: "native", or "eager".
            modules: the graphs of the ranks after the first.

        Raises:
            ModelError: a graph calls what the workers do not have.
            WorkerError: a worker has ended.
        """
        texts = list(map(dumps, modules))
        number = next(self._numbers)
        made = [RemoteProgram(number, worker.rank) for worker in self._workers]
        with self._turn(made):
            for worker, text in zip(self._workers, texts, strict=True):
                worker.tell("program", number, compiler, text)
            self._answers(made)
        for one, forgotten in zip(made, self._forgotten, strict=True):
            weakref.finalize(one, forgotten.append, number).atexit = False
        return made

    def run_all(self, forwards: Sequence[Any], rows: list[tuple[Any, ...]]) -> list[list[Any]]:
        """Run a graph on all ranks, each with its row of arguments; the list of rows is emptied.

        Raises:
            WorkerError: a worker has ended, now or before.
            Exception: what the first rank to fail raised, with a note naming the rank and the node.
        """
        first, *remote = forwards
        with self._turn(remote):
            own, *others = rows
            rows.clear()
            sent = load().Sent(self._arena, others, own, write_value)
            self._begin(remote, sent.places())
            results = [self._run_first(first, own)]
            given = enumerate(zip(self._answers(remote), self._leases, strict=True))
            return results + [sent.unpack(at, *place, known, read_value) for at, (place, known) in given]

    def time(self, programs: Sequence[Any]) -> None:
        """Have the workers note when the ops of their programs start, from the next run on.

        Raises:
            WorkerError: a worker has ended.
        """
        self._ask("time", programs)

    def times(self, programs: Sequence[Any]) -> list[Times]:
        """Have them end that: what each has noted.

        Raises:
            WorkerError: a worker has ended.
        """
        return self._ask("times", programs)

    def _ask(self, what: str, programs: Sequence[Any]) -> list[Any]:
        """Say something of a program to each worker: what they answer."""
        with self._turn(programs):
            for worker, program in zip(self._workers, programs, strict=True):
                worker.tell(what, program.number)
            return self._answers(programs)

    @contextmanager
    def _turn(self, remote: Sequence[RemoteProgram]) -> Iterator[None]:
        """One exchange with the workers goes at a time; where it fails or is left, all are had back."""
        with self._first.alone():
            self._require_alive()
            if self._under_way:  # Ctrl-C came again, while they were
                self._have_back(remote)
            self._under_way = True
            try:
                yield
            except _Failed as failed:
                self._have_back(remote)
                self._raise_first(failed.failures)
            except BaseException as error:
                failures = [(0, error), *self._have_back(remote)]
                self._raise_first(failures)
            self._under_way = False

    def _begin(self, remote: Sequence[RemoteProgram], places: Sequence[tuple[int, int]]) -> None:
        """Have the workers start."""
        run, now = next(self._runs), settings()
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        changed = None if now == self._settings else now
        self._settings = None  # should not all hear of it
        self._meeting.native.begin(run)
        for worker, program, place, leases, forgotten in zip(
            self._workers, remote, places, self._leases, self._forgotten, strict=True
        ):
            gone = [forgotten.pop() for _ in range(len(forgotten))]  # others may come meanwhile
            worker.tell("run", program.number, run, place, modes, changed, leases.take_ended(), gone)
        self._settings = now

    def _run_first(self, forward: Callable[..., Any], row: tuple[Any, ...]) -> list[Any]:
        """The results of this process's rank."""
        if isinstance(forward, RankProgram):
            return self._first.run_programs([forward], [row])[0]
        found: list[Any] = self._first.run([partial(forward, *row)])[0]
        return found

    def _answers(self, remote: Sequence[RemoteProgram]) -> list[Any]:
        """What the workers answer."""
        said = [worker.hear() for worker in self._workers]
        failures = [
            _failure(program, one) for program, one in zip(remote, said, strict=True) if one[0] == "failed"
        ]
        if failures:
            raise _Failed(failures)
        return [one[1] for one in said]

    def _have_back(self, remote: Sequence[RemoteProgram]) -> Failures:
        """Have all workers wait again, or end them if one does not: what they have raised meanwhile."""
        self._meeting.native.fail()
        until = time.monotonic() + min(self.timeout, PATIENCE)
        token = next(self._runs)
        failures: Failures = []
        gone: list[str] = []
        for worker, program in zip(self._workers, remote, strict=True):
            try:
                worker.tell("settle", token)
                while (said := worker.hear(max(0.1, until - time.monotonic()))) != ("settled", token):
                    if said[0] == "failed":
                        failures.append(_failure(program, said))
            except WorkerError as ended:
                gone.append(str(ended))
            except TimeoutError:
                gone.append(f"rank {worker.rank} ({worker.device}) did not come back, and was ended")
        if gone:
            self._lost = "; ".join(gone)
            self.close()
        self._meeting.native.reset()
        self._under_way = False
        return failures

    def _raise_first(self, failures: Failures) -> NoReturn:
        """Raise what a user is to see: that he left, that a process has ended, or what a rank has raised."""
        left = next((error for _, error in failures if not isinstance(error, Exception)), None)
        if left is not None:
            raise left
        if self._lost is not None:
            raise WorkerError(f"{self._lost}; {REMEDY}") from None
        _, error = next((one for one in failures if not isinstance(one[1], RankAborted)), failures[0])
        try:
            raise error from error.__cause__
        finally:
            del error, failures, left  # break the cycle from the traceback to this frame and back

    def _require_alive(self) -> None:
        if self._lost is not None:
            raise WorkerError(f"{self._lost}; {REMEDY}")
        if not self._finalizer.alive:
            raise WorkerError("this runtime is closed; compile the model again")

    def alone(self) -> AbstractContextManager[None]:
        """Keep the runs of other threads out, between this one's too.

        Raises:
            TpfxError: this is a rank's thread, or another process.
        """
        return self._first.alone()

    def native_meeting(self) -> SharedMeeting:
        """Where the ranks of the native executor meet."""
        return self._meeting

    def close(self) -> None:
        """End the processes; also happens when the runtime is collected, and when this process ends."""
        self._finalizer()
        self._first.close()


def _failure(program: RemoteProgram, said: tuple[Any, ...]) -> tuple[int, BaseException]:
    """The rank that has failed, and its error as it is to be raised."""
    _, node, text = said
    error: BaseException = pickle.loads(text)
    error.add_note(f"on rank {program.rank}" + (f", in node {node}" if node else ""))
    try:
        program.fail(error, node)
    except BaseException as raised:
        return program.rank, raised


def _end(workers: Sequence[WorkerProcess], process: int) -> None:
    """End processes, all at once; not from a process that was forked."""
    if os.getpid() == process:
        for worker in workers:
            worker.close()
        for worker in workers:
            worker.end()
