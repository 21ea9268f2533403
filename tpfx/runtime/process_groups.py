"""The process groups under which torch's functional collectives find the other rank threads of a process.

groups = ThreadGroups(mesh, timeout=300.0)       # registered under mesh.group_name(rank)
# then, in the thread of each rank:
torch.ops._c10d_functional.all_reduce(x, "sum", mesh.group_name(rank))
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from ..kernels.stamps import stamp_collective
from ..native.collectives import Meeting
from ..torch_internals import distributed
from .mesh import Mesh
from .native_meeting import NativeMeeting
from .rendezvous import Rendezvous
from .thread_collectives import CollectiveCall


class Meets(Protocol):
    """What carries out the collectives of ranks."""

    @property
    def mesh(self) -> Mesh:
        """The ranks."""

    def meet(self, rank: int, call: CollectiveCall) -> None:
        """Carry out one collective; returns when the tensors of `rank` are ready."""


class Groups(Protocol):
    """How the ranks that a runtime runs find each other, and the others."""

    def native_meeting(self) -> Meeting | None:
        """Where native programs meet; None where they use torch's process groups."""

    def abort(self) -> None:
        """Release every rank that waits or comes."""

    def reset(self) -> None:
        """Be ready for the next run, after an abort."""

    def cause(self, rank: int, error: BaseException) -> BaseException:
        """What is behind an error of a rank."""

    def give_up(self, ident: int) -> None:
        """Keep a thread that did not come back away from its successors."""

    def welcome(self, ident: int) -> None:
        """A thread that was given up has come back, and ends."""

    def close(self) -> None:
        """Unregister the groups."""


@distributed.by_former_names
class ThreadGroup(distributed.ProcessGroup):  # type: ignore[misc]
    """The process group of one rank thread; its collectives meet those of the other ranks of its process.

    Registered under `mesh.group_name(rank)` until `close`; torch holds it weakly, so keep a reference.
    """

    def __init__(self, meeting: Meets, rank: int) -> None:
        super().__init__(rank, meeting.mesh.size)
        self._meeting = meeting
        self._rank = rank
        self._done = distributed.completed_work()
        distributed.register_group(meeting.mesh.group_name(rank), self)

    def close(self) -> None:
        """Unregister the group."""
        distributed.unregister_group(self._meeting.mesh.group_name(self._rank))

    def getBackendName(self) -> str:
        """The name torch asks for."""
        return "tpfx"

    def _meet(self, call: CollectiveCall) -> Any:
        stamp_collective()
        self._meeting.meet(self._rank, call)
        stamp_collective()
        return self._done

    def allreduce(self, tensors: list[Tensor], opts: Any) -> Any:
        """Reduce in place."""
        return self._meet(
            CollectiveCall("all_reduce", tensors, reduction=distributed.REDUCTIONS[opts.reduceOp.op])
        )

    allreduce_coalesced = allreduce

    def all_gather_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any) -> Any:
        """Concatenate the ranks' inputs along dim 0."""
        return self._meet(CollectiveCall("all_gather", inputs, outputs))

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any) -> Any:
        """Concatenate the ranks' inputs along dim 0."""
        return self._meet(CollectiveCall("all_gather", [input], [output]))

    def reduce_scatter_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any) -> Any:
        """Reduce, and keep this rank's shard of dim 0."""
        reduction = distributed.REDUCTIONS[opts.reduceOp.op]
        return self._meet(CollectiveCall("reduce_scatter", inputs, outputs, reduction))

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any) -> Any:
        """Reduce, and keep this rank's shard of dim 0."""
        return self.reduce_scatter_single_coalesced([output], [input], opts)

    def all_to_all_single(
        self, output: Tensor, input: Tensor, out_splits: list[int], in_splits: list[int], opts: Any
    ) -> Any:
        """Send every rank a part of dim 0; without splits, parts of one size."""
        size = self._meeting.mesh.size
        received = list(out_splits) or [output.shape[0] // size] * size
        sent = list(in_splits) or [input.shape[0] // size] * size
        return self._meet(CollectiveCall("all_to_all", [input], [output], splits=(received, sent)))

    def broadcast(self, tensors: list[Tensor], opts: Any) -> Any:
        """Overwrite with the root's tensors."""
        return self._meet(CollectiveCall("broadcast", tensors, root=opts.rootRank))


class ThreadGroups:
    """The ThreadGroups of a mesh. `timeout` in seconds; `locate` says where a rank is, for messages."""

    def __init__(self, mesh: Mesh, timeout: float, locate: Callable[[int], str | None] | None = None) -> None:
        self.meeting = Rendezvous(mesh, timeout, locate)
        self._native: NativeMeeting | None = None
        self._groups = [ThreadGroup(self.meeting, rank) for rank in mesh.owned]

    def native_meeting(self) -> NativeMeeting | None:
        """Where the native executor's ranks meet; None where these are not all ranks, or not on the CPU.

        Raises:
            NoExecutor: its extension cannot be built here.
        """
        meeting, mesh = self.meeting, self.meeting.mesh
        if mesh.group is not None or any(device.type != "cpu" for device in mesh.devices):
            return None
        if self._native is None:
            self._native = NativeMeeting(mesh, meeting.timeout, meeting.locate)
        return self._native

    def abort(self) -> None:
        """Release every rank that waits or comes."""
        self.meeting.abort()
        if self._native is not None:
            self._native.abort()

    def reset(self) -> None:
        """Be ready for the next run, after an abort."""
        self.meeting.reset()
        if self._native is not None:
            self._native.reset()

    def cause(self, rank: int, error: BaseException) -> BaseException:
        """What a collective of a rank has raised, where compiled code made another error of it."""
        raised = self.meeting.raised.pop(rank, error)
        if raised is not error and raised.__cause__ is None:
            raised.__cause__ = error
        return raised

    def give_up(self, ident: int) -> None:
        """Keep a thread that did not come back away from its successors."""
        self.meeting.lost.add(ident)

    def welcome(self, ident: int) -> None:
        """A thread that was given up has come back, and ends."""
        self.meeting.lost.discard(ident)

    def close(self) -> None:
        """Unregister the groups."""
        for group in self._groups:
            group.close()
