"""The runtime: one persistent thread per owned rank, in which the per-device graphs run at once.

    runtime = Runtime(mesh)
    outputs = runtime.run([lambda: graph0(x), lambda: graph1(x)])     # calls[i] in the thread of owned rank i

When a rank raises, the others are released from their collectives, the caller gets that rank's own exception
with a note where it happened, and the runtime stays usable.
"""

import linecache
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch

from ..errors import TpfxError
from ..native.collectives import Meeting
from ..native.rank_program import RankProgram
from .mesh import Mesh
from .process_groups import Groups, ThreadGroups
from .rank_threads import Failures, Job, Worker, in_rank_thread

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# In whose frames a `self` knows the node that runs.
_OF_PROGRAMS = {RankProgram.__call__.__code__, RankProgram.fail.__code__}

# By the id of its mesh, which lives as long; a mesh as key would keep it.
_OF_MESH: "weakref.WeakValueDictionary[int, Runtime]" = weakref.WeakValueDictionary()

# Once a rank has failed, the others are released from their collectives, so only one that is stuck
# elsewhere takes long. It gets this many seconds (at most the timeout) before its thread is given up.
PATIENCE = 30.0

# `add: "f32[2, 3]" = torch.ops.aten.add.Tensor(...)`, the annotation being optional.
_ASSIGNMENT = re.compile(r'\s*(\w+)\s*(?::\s*(?:"[^"]*"|[^="]+?)\s*)?=(?!=)')


class Runtime:
    """Runs one call per owned rank of a mesh, in persistent threads whose collectives find each other.

    Args:
        mesh: the devices and the owned ranks.
        timeout: how many seconds a rank waits in a collective for the others before CollectiveTimeout.
        groups: how ranks find each other, if not all of them are threads of this runtime.
    """

    def __init__(self, mesh: Mesh, timeout: float = 300.0, groups: Groups | None = None) -> None:
        if timeout <= 0:
            raise TpfxError(f"timeout={timeout}: pass the number of seconds to wait for a rank, above 0")
        self.mesh = mesh
        self.timeout = timeout
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._gpus = mesh.gpus
        workers: list[Worker] = []
        # The groups must not refer to the runtime itself, or it would never be collected.
        self._groups = groups or ThreadGroups(mesh, timeout, lambda rank: _whereabouts(workers, rank))
        self._workers = workers
        self._dirty = False
        self._finalizer = weakref.finalize(self, _stop, workers)
        # At the end of the process the threads sleep on: Python would end them where they came back to it.
        self._finalizer.atexit = False
        self._close_groups = weakref.finalize(self, self._groups.close)
        sharers = mesh.size if mesh.apart else len(mesh.owned)
        self._num_threads = max(1, torch.get_num_threads() // sharers)
        workers += [self._start(rank) for rank in mesh.owned]
        _OF_MESH[id(mesh)] = self

    def run(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Run calls[i] in the thread of the i-th owned rank, all at once, and return their results.

        The calls see the caller's grad mode and inference mode, and no autocast. One run goes at a time.

        Raises:
            TpfxError: called from inside a rank thread, with a wrong number of calls, or after `close`.
            Exception: what the first rank to fail raised, with a note naming the rank and the node.
        """
        with self._turn(len(calls)):
            return self._dispatch(calls)

    def run_programs(self, programs: Sequence[RankProgram], rows: list[tuple[Any, ...]]) -> list[list[Any]]:
        """`run` of native programs, each with its row of arguments; the threads do it without Python's lock.

        The list of rows is emptied: what nobody else holds is let go after its last use.
        """
        with self._turn(len(programs)):
            failures = Failures(self._groups.abort, self._cause)
            try:
                return self._carry_out(self._round(programs, rows, failures), failures)
            finally:
                for worker in self._workers:
                    worker.forget()

    def _round(self, programs: Sequence[RankProgram], rows: list[tuple[Any, ...]], failures: Failures) -> Any:
        """The programs in the seats of their ranks; this thread takes the first's, where it may."""
        extension = programs[0].extension
        alike = torch.get_num_threads() == self._num_threads and extension.is_plain_thread()
        here = alike and not programs[0].in_python  # which may be stuck: a thread can be given up
        seats = [
            worker.expect(failures, index, program, here and index == 0)
            for index, (worker, program) in enumerate(zip(self._workers, programs, strict=True))
        ]
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        return extension.Round(seats, [program.program for program in programs], rows, *modes)

    def _carry_out(self, planned: Any, failures: Failures) -> list[list[Any]]:
        """The results of a round."""
        results: list[list[Any]] | None = None
        try:
            results = planned.run()
        except BaseException as error:
            if not planned.failed_here:  # KeyboardInterrupt, for one
                self._groups.abort()
                self._settle(failures, planned.settle)
                raise
            self._workers[0].note(error)
        if results is None:
            self._settle(failures, planned.settle)
            self._raise_first(failures)
        assert results is not None, "no rank has failed"
        return results

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the runs of other threads out, between this one's too.

        Raises:
            TpfxError: this is a rank's thread, or another process.
        """
        self._require_outside()
        with self._lock:
            yield

    def _require_outside(self) -> None:
        if in_rank_thread():
            raise TpfxError("Runtime.run was called inside a rank's thread; call it from outside the graphs")
        if os.getpid() != self._process:
            raise TpfxError(
                f"process {os.getpid()} was forked from {self._process}, whose threads run the model, and "
                "has none of them; call the model there (a DataLoader with num_workers=0), or compile it here"
            )

    @contextmanager
    def _turn(self, calls: int) -> Iterator[None]:
        """One run goes at a time, of as many calls as there are ranks here."""
        self._require_outside()
        if calls != len(self.mesh.owned):
            owned = len(self.mesh.owned)
            raise TpfxError(f"{calls} calls for {owned} ranks; pass one call per owned rank")
        with self._lock:
            if not self._finalizer.alive:
                raise TpfxError("this runtime is closed; compile the model again")
            if self._dirty:
                self._restore()
            yield

    def native_meeting(self) -> Meeting | None:
        """Where the ranks of the native executor meet; None where they use torch's process groups.

        Raises:
            NoExecutor: the extension cannot be built here.
        """
        return self._groups.native_meeting()

    def close(self) -> None:
        """End the threads and unregister the groups; also happens when the runtime is collected."""
        with self._lock:
            self._finalizer()
            self._close_groups()
            for worker in self._workers:
                worker.join(timeout=1.0)

    def _dispatch(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        job = Job(calls, self._groups.abort, self._cause, self._gpus)
        try:
            for index, worker in enumerate(self._workers):
                worker.submit(job, index)
            job.signal.acquire()
        except BaseException:  # KeyboardInterrupt, for one
            self._groups.abort()
            self._settle(job, job.settle)
            raise
        if job.errors:
            self._settle(job, job.settle)
            self._raise_first(job)
        for gpu in self._gpus:
            for event in job.after:
                torch.cuda.current_stream(gpu).wait_event(event)
        return job.results

    def _cause(self, index: int, error: BaseException) -> BaseException:
        return self._groups.cause(self.mesh.owned[index], error)

    def _settle(self, failures: Failures, settle: Callable[[float], list[int]]) -> None:
        """Wait for the ranks of a failed run, and give up the threads that do not come back."""
        self._dirty = True
        missing = list(range(len(self._workers)))  # should another Ctrl-C end the wait
        try:
            missing = settle(min(self.timeout, PATIENCE))
        finally:
            with failures.mutex:
                failures.abandoned = True
            for index in missing:
                self._workers[index].give_up()
                self._groups.give_up(self._workers[index].ident)

    def _restore(self) -> None:
        """Make good what a failed run left behind."""
        for index, worker in enumerate(self._workers):
            if worker.lost:
                self._workers[index] = self._start(worker.rank)
        self._groups.reset()
        self._dirty = False

    def _start(self, rank: int) -> Worker:
        num_threads = torch.get_num_threads()
        worker = Worker(rank, self.mesh.devices[rank], self._num_threads, self._groups.welcome)
        # set_num_threads is per thread, but the last value set anywhere is what later threads begin with.
        torch.set_num_threads(num_threads)
        return worker

    def _raise_first(self, failures: Failures) -> None:
        index, error = failures.first_error()
        failures.errors.clear()  # the workers remember the failures until the next run
        node = node_of(error.__traceback__)
        rank = self.mesh.owned[index]
        error.add_note(f"on rank {rank} ({self.mesh.devices[rank]})" + (f", in node {node}" if node else ""))
        for worker in self._workers:
            if worker.lost:
                error.add_note(f"rank {worker.rank} ({worker.device}) did not come back: thread given up")
        try:
            raise error
        finally:
            del error, failures  # break the cycle from the traceback to this frame and back


def runtime_of(mesh: Mesh) -> Runtime | None:
    """The runtime that drives the ranks of a mesh, if it lives, and this is not one of its threads."""
    runtime = None if in_rank_thread() else _OF_MESH.get(id(mesh))
    return runtime if runtime is not None and runtime._finalizer.alive else None


def raises_for_node(function: F) -> F:
    """A method that raises what a node has: its object's `node_at(variables)` says which."""
    _OF_PROGRAMS.add(function.__code__)
    return function


def node_of(place: TracebackType | FrameType | None) -> str | None:
    """The name of the fx node that runs at `place`: the innermost line of generated graph code, or None."""
    found = None
    if isinstance(place, FrameType):
        frame: FrameType | None = place
        while frame is not None and found is None:
            found = _node_at(frame, frame.f_lineno)
            frame = frame.f_back
        return found
    while place is not None:
        found = _node_at(place.tb_frame, place.tb_lineno) or found
        place = place.tb_next
    return found


def _node_at(frame: FrameType, line: int) -> str | None:
    if frame.f_code in _OF_PROGRAMS:
        program: RankProgram = frame.f_locals["self"]
        return program.node_at(frame.f_locals)
    filename = frame.f_code.co_filename
    if not filename.startswith("<eval_with_key>"):
        return None
    match = _ASSIGNMENT.match(linecache.getline(filename, line, frame.f_globals))
    return match[1] if match else None


def _whereabouts(workers: list[Worker], rank: int) -> str | None:
    """In words, where the thread of `rank` is now."""
    worker = next((worker for worker in workers if worker.rank == rank), None)
    if worker is None:
        return None
    node = worker.node
    if node is not None:
        return f"in node {node}"
    if not worker.busy:
        return "its call has returned"
    frame = sys._current_frames().get(worker.ident)
    node = node_of(frame)
    if node is not None:
        return f"in node {node}"
    if frame is None or worker.ident == threading.get_ident():  # who asks is here, which says nothing
        return None
    return f"at {frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_name}"


def _stop(workers: list[Worker]) -> None:
    for worker in workers:
        worker.stop()
