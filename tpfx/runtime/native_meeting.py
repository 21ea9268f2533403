"""Where the rank threads of one process meet in C++, and what a rank says that leaves without its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import CollectiveError, CollectiveTimeout, RankAborted
from ..native.build import load
from .mesh import Mesh
from .rendezvous import describe_timeout
from .thread_collectives import PARALLEL_BYTES, call_of, mismatch


class NativeMeeting:
    """The meeting of a mesh's ranks, which are all of this process, on its CPU.

    Args:
        mesh: the ranks.
        timeout: seconds that a rank waits for the others.
        locate: says where a rank is, for the message of a CollectiveTimeout.

    Raises:
        NoExecutor: the extension cannot be built here.
    """

    def __init__(self, mesh: Mesh, timeout: float, locate: Callable[[int], str | None] | None) -> None:
        self.mesh, self.timeout, self.locate = mesh, timeout, locate
        self.names = {mesh.group_name(rank) for rank in mesh.owned}
        self.native: Any = load().ThreadMeeting(size=mesh.size, timeout=timeout, big=PARALLEL_BYTES)

    def abort(self) -> None:
        """Release every rank that waits or comes."""
        self.native.abort()

    def reset(self) -> None:
        """Be ready for the next run, after an abort."""
        self.native.reset()

    def error(self, why: str, rank: int, node: str) -> Exception:
        """What a rank raises that has left the collective `node`, "aborted", "timed out" or "disagreed"."""
        if why == "aborted":
            return RankAborted(f"rank {rank} was released from {node}: another rank failed")
        calls = [call_of(*each) for each in self.native.calls()]
        if why == "disagreed":
            return CollectiveError(mismatch(calls))
        missing = self.native.missing()
        text = describe_timeout(self.mesh, rank, calls[rank], missing, self.timeout, self.locate)
        return CollectiveTimeout(text)
