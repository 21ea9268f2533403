"""Rank threads and the jobs that they carry out.

worker = Worker(rank=0, device=torch.device("cpu"), num_threads=1)
job = Job([call], on_failure=abort, cause=lambda index, error: error)
worker.submit(job, 0)
job.signal.acquire()        # finished, or a rank has failed
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..errors import RankAborted
from ..native.rank_program import RankProgram
from ..torch_internals import distributed

_current = threading.local()


def in_rank_thread() -> bool:
    """Whether the calling thread is a rank's."""
    return getattr(_current, "worker", None) is not None


class Failures:
    """What ranks have raised in one run.

    `on_failure` releases the others; `cause` says what is behind an error of a rank. Of a run that was given
    up, late failures keep to themselves.
    """

    def __init__(
        self, on_failure: Callable[[], None], cause: Callable[[int, BaseException], BaseException]
    ) -> None:
        self.errors: dict[int, BaseException] = {}  # in the order in which they happened
        self.mutex = threading.Lock()
        self.abandoned = False
        self._on_failure, self._cause = on_failure, cause

    def note(self, index: int, error: BaseException) -> None:
        """A rank has failed."""
        with self.mutex:
            self.errors[index] = self._cause(index, error)
            if not self.abandoned:  # a straggler must not abort the runs after its own
                self._on_failure()

    def first_error(self) -> tuple[int, BaseException]:
        """The failure that came first, with its index, and not a RankAborted that it caused."""
        failures = list(self.errors.items())
        return next((item for item in failures if not isinstance(item[1], RankAborted)), failures[0])


class Job(Failures):
    """One call per owned rank, the modes of the caller, and what comes back.

    `signal` is released once: when all ranks have returned or when the first one fails. `all_back` is
    released when all have returned. A job that was given up keeps the late results to itself.
    """

    def __init__(
        self,
        calls: Sequence[Callable[[], Any]],
        on_failure: Callable[[], None],
        cause: Callable[[int, BaseException], BaseException],
        gpus: Sequence[torch.device] = (),
    ) -> None:
        super().__init__(on_failure, cause)
        self.calls = calls
        self.results: list[Any] = [None] * len(calls)
        self.unfinished = set(range(len(calls)))
        self.grad = torch.is_grad_enabled()
        self.inference = torch.is_inference_mode_enabled()
        self.signal = threading.Lock()
        self.signal.acquire()
        self.all_back = threading.Lock()
        self.all_back.acquire()
        self.before = [torch.cuda.current_stream(gpu).record_event() for gpu in gpus]
        self.after: list[torch.cuda.Event] = []
        self._signalled = False

    def perform(self, index: int) -> None:
        """Carry out calls[index] under the caller's modes; never raises."""
        try:
            if torch.is_grad_enabled() != self.grad:
                torch.set_grad_enabled(self.grad)
            if self.inference:
                with torch.inference_mode():
                    self.results[index] = self.calls[index]()
            elif self.grad:
                self.results[index] = self.calls[index]()
            else:
                with distributed.below_autograd():
                    self.results[index] = self.calls[index]()
        except BaseException as error:  # whatever it is belongs to the caller of run()
            self.note(index, error)

    def finish(self, index: int) -> None:
        """Count the rank as back."""
        with self.mutex:
            self.unfinished.discard(index)
            if not self.unfinished:
                self.all_back.release()
            if not self._signalled and (self.errors or not self.unfinished):
                self._signalled = True
                self.signal.release()

    def settle(self, timeout: float) -> list[int]:
        """Wait for the ranks to return; those that have not by then. What comes later is nobody's."""
        try:
            self.all_back.acquire(timeout=timeout)
        finally:
            with self.mutex:
                self.abandoned = True
        return sorted(self.unfinished)


class _Seat:
    """Where a thread waits that runs calls in Python alone."""

    program = None

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.wait, self.wake = self._lock.acquire, self._lock.release

    def give_up(self) -> None:
        """Its thread comes back to Python anyway."""


class Worker:
    """A daemon thread that carries out the jobs of one rank; it has its own stream or intra-op threads.

    `on_return` is called with the thread's ident when a thread that was given up comes back after all.
    """

    def __init__(
        self, rank: int, device: torch.device, num_threads: int, on_return: Callable[[int], None]
    ) -> None:
        self.rank = rank
        self.device = device
        self.busy = False
        self.lost = False
        self._num_threads = num_threads
        self._on_return = on_return
        self._task: tuple[Job, int] | None = None
        self._seat: Any = _Seat()
        self._failures: tuple[Failures, int, RankProgram] | None = None
        self._by_caller = self._stopped = False
        self._ready = threading.Event()
        self._problem: BaseException | None = None
        self._stream: torch.cuda.Stream | None = None
        self._thread = threading.Thread(target=self._loop, name=f"tpfx rank {rank} ({device})", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._problem is not None:
            raise self._problem

    @property
    def ident(self) -> int:
        """The thread's ident, as in sys._current_frames()."""
        assert self._thread.ident is not None
        return self._thread.ident

    @property
    def node(self) -> str | None:
        """The node of the rank's native program that runs, if one does."""
        running = None if self._failures is None else self._failures[2]
        runs = running is not None and (self._by_caller or self._seat.program is running.program)
        return running.node if running is not None and runs else None

    def submit(self, job: Job, index: int) -> None:
        """Start calls[index] of the job."""
        self._task = (job, index)
        self.busy = True
        self._seat.wake()

    def expect(self, failures: Failures, index: int, program: RankProgram, by_caller: bool) -> Any:
        """The seat in which a program is to be started, whose failure is noted; None: the caller runs it."""
        if type(self._seat) is not program.extension.Seat:
            before, self._seat = self._seat, program.extension.Seat()
            before.wake()
        self._failures, self._by_caller = (failures, index, program), by_caller
        return None if by_caller else self._seat

    def note(self, error: BaseException) -> None:
        """The program that was expected has raised an error."""
        assert self._failures is not None, "a program was started"
        failures, index, program = self._failures
        try:
            program.fail(error)
        except BaseException as own:
            failures.note(index, own)

    def forget(self) -> None:
        """The program is over; what was to be noted of it must not be kept alive."""
        if not self.lost:
            self._failures = None

    def give_up(self) -> None:
        """The thread is stuck: it ends if it comes back."""
        self.lost = True
        self._seat.give_up()

    def stop(self) -> None:
        """Let the thread end once it is back from what it does."""
        self._stopped = True
        self._seat.wake()

    def join(self, timeout: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout)

    def _loop(self) -> None:
        _current.worker = self
        try:
            self._prepare()
        except BaseException as error:  # raised again in the thread that made the worker
            self._problem = error
            return
        finally:
            self._ready.set()
        while not self.lost:
            seat = self._seat
            try:
                seat.wait()
            except BaseException as error:  # of a program; it belongs to the caller of run_programs()
                self.note(error)
                del error
                seat.failed()
            task, self._task = self._task, None
            if task is not None:
                self._carry_out(*task)
            del task  # the thread sleeps now, and must not keep the tensors of its last call
            if self._stopped and not self.lost:
                return
        self._on_return(self.ident)

    def _prepare(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            self._stream = torch.cuda.Stream(self.device)
            torch.cuda.set_stream(self._stream)
        else:
            torch.get_num_threads()  # a thread's first parallel op would overwrite a number set before this
            torch.set_num_threads(self._num_threads)

    def _carry_out(self, job: Job, index: int) -> None:
        if self._stream is not None:
            for event in job.before:
                self._stream.wait_event(event)
        job.perform(index)
        if self._stream is not None:
            job.after.append(self._stream.record_event())
        self.busy = False
        job.finish(index)
