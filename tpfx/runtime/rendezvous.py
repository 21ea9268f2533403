"""Where the rank threads of one process meet for a collective.

On GPUs the last thread to arrive enqueues the work of all ranks, on their streams, while the others wait:
no part of a collective spins on its GPU while the thread that is to start another part is held up, by an
allocation that waits for that GPU say.

meeting = Rendezvous(mesh, timeout=300.0)
meeting.meet(rank, CollectiveCall("all_reduce", [x], reduction="sum"))     # in the thread of each rank
meeting.abort()                                                            # whoever waits gets RankAborted
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch

from ..errors import CollectiveError, CollectiveTimeout, RankAborted
from .hierarchical_collectives import Bridge
from .mesh import Mesh
from .thread_collectives import CollectiveCall, carry_out, issue, mismatch


class _Round:
    """One collective on its way: who has arrived, and what came of it."""

    __slots__ = ("arrived", "calls", "done", "error", "finished", "parallel", "ready", "streams")

    def __init__(self, size: int) -> None:
        self.calls: list[CollectiveCall | None] = [None] * size
        self.arrived = 0
        self.finished = 0
        self.parallel = False
        self.error: str | None = None
        self.ready: list[torch.cuda.Event] = []
        self.done: list[torch.cuda.Event] = []
        self.streams: list[torch.cuda.Stream | None] = [None] * size


class Rendezvous:
    """Where the ranks of a mesh meet: it collects a call of each rank, carries them out, and lets all go on.

    `timeout` is in seconds. `locate(rank)` may say where a rank is, for the message of a CollectiveTimeout.
    """

    def __init__(self, mesh: Mesh, timeout: float, locate: Callable[[int], str | None] | None = None) -> None:
        self.mesh = mesh
        self.timeout = timeout
        self.locate = locate
        self.lost: set[int] = set()  # idents of threads that were given up: they must not meet others
        self._gpus = mesh.gpus
        # Ranks of one process that have a GPU each go through NCCL; others' tensors are copied.
        self._issue = issue if mesh.group is None and len(mesh.gpus) == mesh.size > 1 else None
        self._bridge = Bridge(mesh) if mesh.group is not None else None
        self._seats = {rank: seat for seat, rank in enumerate(mesh.owned)}
        self._mutex = threading.Lock()
        self._aborted = False
        # A gate is a lock that stays taken; whoever waits at it is let through by one release.
        self._gates = [threading.Lock() for _ in mesh.owned]
        self.reset()

    def reset(self) -> None:
        """Forget an aborted collective. No rank may be inside `meet`."""
        with self._mutex:
            self._aborted = False
            self.raised: dict[int, Exception] = {}  # by rank, as what carries a call may raise others instead
            self._waiting: set[int] = set()
            self._round = _Round(len(self._seats))
            for gate in self._gates:
                gate.acquire(blocking=False)

    def abort(self) -> None:
        """Release every waiting rank, and every rank that comes before `reset`, with RankAborted."""
        with self._mutex:
            self._aborted = True
            self._open_gates()

    def meet(self, rank: int, call: CollectiveCall) -> None:
        """Carry out one collective; returns when the tensors of `rank` are ready.

        Raises:
            CollectiveError: the ranks' calls disagree.
            CollectiveTimeout: a rank did not come within the timeout.
            RankAborted: another rank failed.
        """
        try:
            self._meet(rank, call)
        except Exception as error:
            self.raised[rank] = error
            raise

    def _meet(self, rank: int, call: CollectiveCall) -> None:
        this = self._arrive(rank, call)
        if this.error is not None:
            raise CollectiveError(this.error)
        if this.parallel:
            seat = self._seats[rank]
            self._share(this, range(seat, seat + 1))
            self._finish(rank, this)
        if this.done:  # this rank's work goes on after it; whoever copies next waits for the other GPUs'
            self._await_events(this.done, [self.mesh.devices[rank]])

    def _arrive(self, rank: int, call: CollectiveCall) -> _Round:
        if self.lost and threading.get_ident() in self.lost:
            raise RankAborted(f"rank {rank} came back after it had been given up")
        with self._mutex:
            self._require_running()
            this = self._round
            this.calls[self._seats[rank]] = call
            this.arrived += 1
            if self._gpus:
                stream = this.streams[self._seats[rank]] = torch.cuda.current_stream(self.mesh.devices[rank])
                this.ready.append(stream.record_event())
            last = this.arrived == len(this.calls)
            if last:
                self._round = _Round(len(this.calls))
            else:
                self._waiting.add(rank)
        if not last:
            self._wait(rank, this)
            return this
        this.error = mismatch(_present(this))
        if this.error is None and not self._issued(this):
            this.parallel = len(this.calls) > 1 and self._bridge is None and call.is_big()
            if not this.parallel:
                self._share(this, range(len(this.calls)))
        with self._mutex:
            self._open_gates()
        return this

    def _issued(self, this: _Round) -> bool:
        """Whether the ranks' own streams do it all from here on."""
        try:
            return self._issue is not None and self._issue(_present(this), this.streams)
        except BaseException:
            self.abort()
            raise

    def _share(self, this: _Round, targets: range) -> None:
        """Do the part of the work that belongs to `targets`, places among the ranks of this process."""
        try:
            if self._gpus:
                self._await_events(this.ready, self._gpus)
            if self._bridge is None:
                carry_out(_present(this), targets)
            else:
                self._bridge.carry_out(_present(this))
            if self._gpus:
                this.done += self._record_events()
        except BaseException:
            self.abort()  # the others wait for this part
            raise

    def _finish(self, rank: int, this: _Round) -> None:
        """Wait until nobody reads or writes this rank's tensors any more."""
        with self._mutex:
            self._require_running()
            this.finished += 1
            if this.finished == len(this.calls):
                self._open_gates()
                return
            self._waiting.add(rank)
        self._wait(rank, this)

    def _wait(self, rank: int, this: _Round) -> None:
        gate = self._gates[self._seats[rank]]
        while not gate.acquire(timeout=self.timeout):
            with self._mutex:
                missing = [other for other, seat in self._seats.items() if this.calls[seat] is None]
                if rank in self._waiting and missing:
                    self._waiting.discard(rank)
                    self._aborted = True
                    self._open_gates()
                    call = this.calls[self._seats[rank]]
                    text = describe_timeout(self.mesh, rank, call, missing, self.timeout, self.locate)
                    raise CollectiveTimeout(text)
        if self._aborted and this.error is None:
            raise RankAborted(
                f"rank {rank} was released from {this.calls[self._seats[rank]]}: another rank failed"
            )

    def _open_gates(self) -> None:
        for rank in self._waiting:
            self._gates[self._seats[rank]].release()
        self._waiting.clear()

    def _require_running(self) -> None:
        if self._aborted:
            raise RankAborted("another rank failed")

    def _record_events(self) -> list[torch.cuda.Event]:
        """Mark what this thread has copied so far. All GPUs: a copy between two runs on both streams."""
        return [torch.cuda.current_stream(gpu).record_event() for gpu in self._gpus]

    def _await_events(self, events: list[torch.cuda.Event], gpus: Sequence[torch.device]) -> None:
        for gpu in gpus:
            stream = torch.cuda.current_stream(gpu)
            for event in events:
                stream.wait_event(event)


def describe_timeout(
    mesh: Mesh,
    rank: int,
    call: CollectiveCall | None,
    missing: Sequence[int],
    timeout: float,
    locate: Callable[[int], str | None] | None,
) -> str:
    """That the ranks `missing` did not come to the `call` of a rank in time, and where they are."""
    waiting = [other for other in mesh.owned if other not in missing]
    here = locate(rank) if locate is not None else None
    lines = [
        f"{_ranks(missing)} of {mesh.size} did not arrive in {call}"
        f"{f' ({here})' if here else ''} within {timeout:g} s; {_ranks(waiting)} waited there"
    ]
    for other in missing:
        place = locate(other) if locate is not None else None
        lines.append(f"  rank {other} ({mesh.devices[other]}): {place or 'place unknown'}")
    return "\n".join([*lines, "  if that rank is only slow, raise the timeout"])


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _present(this: _Round) -> list[CollectiveCall]:
    return [call for call in this.calls if call is not None]
