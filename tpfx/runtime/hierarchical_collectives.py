"""Collectives between processes that each own several ranks: the rank threads of a process meet first, and
one of them speaks for all.

    Bridge(mesh).carry_out(calls)      # in every process, with the calls of the ranks that it owns
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from ..errors import CollectiveError
from .mesh import Mesh
from .processes import from_all
from .thread_collectives import CollectiveCall, reduce

_OPS = {
    "sum": dist.ReduceOp.SUM,
    "avg": dist.ReduceOp.SUM,
    "product": dist.ReduceOp.PRODUCT,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
}


class Bridge:
    """The collectives of a mesh whose ranks several processes own."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def carry_out(self, calls: list[CollectiveCall]) -> None:
        """Carry out one collective of all ranks, given the calls of those that this process owns.

        Raises:
            CollectiveError: an all_to_all.
            RuntimeError: the group's own error, where another process has ended or is late.
        """
        kind = _KINDS.get(calls[0].kind)
        if kind is None:
            raise CollectiveError(
                f"{calls[0]} between processes that own several ranks; start one process for each rank"
            )
        with torch.no_grad():
            kind(self, calls)

    def _all_reduce(self, calls: list[CollectiveCall]) -> None:
        for inputs in zip(*(call.inputs for call in calls), strict=True):
            total = self._reduced(list(inputs), calls[0].reduction)
            for each in inputs:
                each.copy_(total)

    def _reduced(self, inputs: list[torch.Tensor], reduction: str) -> torch.Tensor:
        """A new tensor: the reduction over all ranks."""
        total = torch.empty_like(inputs[0], memory_format=torch.contiguous_format)
        reduce(inputs, "sum" if reduction == "avg" else reduction, total)
        dist.all_reduce(total, _OPS[reduction], self.mesh.group)
        return total.div_(self.mesh.size) if reduction == "avg" else total

    def _reduce_scatter(self, calls: list[CollectiveCall]) -> None:
        for at, inputs in enumerate(zip(*(call.inputs for call in calls), strict=True)):
            total = self._reduced(list(inputs), calls[0].reduction)
            for rank, call in zip(self.mesh.owned, calls, strict=True):
                out = call.outputs[at]
                out.copy_(total.narrow(0, rank * len(out), len(out)))

    def _all_gather(self, calls: list[CollectiveCall]) -> None:
        for at, shards in enumerate(zip(*(call.inputs for call in calls), strict=True)):
            device = shards[0].device
            found = from_all(torch.stack([shard.to(device) for shard in shards]), self.mesh)
            for call in calls:
                call.outputs[at].copy_(found.flatten(0, 1))

    def _broadcast(self, calls: list[CollectiveCall]) -> None:
        root, mesh = calls[0].root, self.mesh
        speaker = calls[mesh.owned.index(root)] if root in mesh.owned else calls[0]
        source = max(at for at, first in enumerate(mesh.firsts) if first <= root)
        for at, value in enumerate(speaker.inputs):
            sent = value.contiguous()
            dist.broadcast(sent, group=mesh.group, group_src=source)
            for call in calls:
                if call.inputs[at] is not sent:
                    call.inputs[at].copy_(sent)


_KINDS: dict[str, Callable[[Bridge, list[CollectiveCall]], Any]] = {
    "all_reduce": Bridge._all_reduce,
    "all_gather": Bridge._all_gather,
    "broadcast": Bridge._broadcast,
    "reduce_scatter": Bridge._reduce_scatter,
}
