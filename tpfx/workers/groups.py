"""The process group under which functional collectives of one rank find the ranks of other processes."""

from __future__ import annotations

import threading

from ..errors import RankAborted
from ..native.build import load
from ..runtime.mesh import Mesh
from ..runtime.process_groups import ThreadGroup
from ..runtime.shared_memory import SharedMeeting
from ..runtime.thread_collectives import CollectiveCall


class SharedGroups:
    """What rank threads have in `ThreadGroups`, of a rank that meets other processes in shared memory.

    Args:
        mesh: the ranks; this process runs one.
        meeting: where they meet.
    """

    def __init__(self, mesh: Mesh, meeting: SharedMeeting) -> None:
        self.mesh, self._meeting = mesh, meeting
        self._group = ThreadGroup(self, mesh.owned[0])
        self._lost: set[int] = set()  # idents of threads that were given up: they must not meet others

    def meet(self, rank: int, call: CollectiveCall) -> None:
        """Carry out one collective.

        Raises:
            CollectiveError: the ranks' calls disagree, or the process of another has ended.
            CollectiveTimeout: a rank did not come within the timeout.
            RankAborted: another rank failed.
        """
        if threading.get_ident() in self._lost:
            raise RankAborted(f"rank {rank} came back after it had been given up")
        extension, native = load(), self._meeting.native
        kind = extension.Kind.__members__[call.kind]
        how = extension.Reduction.__members__[call.reduction or "none"]
        for given, made in zip(call.inputs, call.outputs or call.inputs, strict=True):
            with self._meeting.left_at(str(call)):
                native.meet(kind, how, call.root, given, made, *call.splits)

    def native_meeting(self) -> SharedMeeting:
        """Where native programs meet."""
        return self._meeting

    def abort(self) -> None:
        """Release the ranks that wait for this one, and this one from waiting."""
        self._meeting.native.fail()

    def reset(self) -> None:
        """Be ready for the next run; all ranks are back from the one before."""
        self._meeting.native.reset()

    def cause(self, rank: int, error: BaseException) -> BaseException:
        """What a collective of a rank has raised: nothing makes another error of it."""
        return error

    def give_up(self, ident: int) -> None:
        """Keep a thread that did not come back away from its successors."""
        self._lost.add(ident)

    def welcome(self, ident: int) -> None:
        """A thread that was given up has come back, and ends."""
        self._lost.discard(ident)

    def close(self) -> None:
        """Unregister the group."""
        self._group.close()
