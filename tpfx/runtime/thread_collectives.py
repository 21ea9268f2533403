"""The collectives between the rank threads of one process: what a rank calls, and the arithmetic.

    calls = [CollectiveCall("all_reduce", [x], reduction="sum") for x in (x0, x1)]
    mismatch(calls)                # None: the ranks call the same thing
    carry_out(calls, range(2))     # x0 and x1 are now the sum
    issue(calls, streams)          # the same by NCCL, where each rank has a GPU of its own

`carry_out` reduces over the ranks in rank order, whoever computes it, so all ranks get the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.cuda import nccl

from ..formatting import shape_text
from ..torch_internals import distributed

# Above this, every rank does its share of the work; below, the wake-up costs more than the work, and the last
# rank to arrive does all of it.
PARALLEL_BYTES = 1 << 20

_NARROW = (torch.bfloat16, torch.float16)


class CollectiveCall:
    """What one rank passes to one collective; the ranks' signatures must agree."""

    __slots__ = ("inputs", "kind", "outputs", "reduction", "root", "splits")

    def __init__(
        self,
        kind: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor] = (),
        reduction: str = "",
        root: int = 0,
        splits: tuple[list[int], list[int]] = ([], []),
    ) -> None:
        self.kind = kind
        self.inputs = inputs
        self.outputs = outputs
        self.reduction = reduction
        self.root = root
        self.splits = splits

    def tensors(self) -> list[Tensor]:
        """What is read, and what is written."""
        return [*self.inputs, *self.outputs]

    def agrees(self, other: CollectiveCall) -> bool:
        """Whether the two ranks call the same thing; the splits of an all_to_all are compared apart."""
        if (self.kind, self.reduction, self.root) != (other.kind, other.reduction, other.root):
            return False
        if len(self.inputs) != len(other.inputs):
            return False
        skip = 1 if self.kind == "all_to_all" else 0
        for mine, theirs in zip(self.inputs, other.inputs, strict=True):
            if mine.dtype != theirs.dtype or mine.shape[skip:] != theirs.shape[skip:]:
                return False
        return True

    def is_big(self) -> bool:
        """Whether the work is worth sharing among the ranks."""
        size = 0
        for tensor in self.inputs:
            size += tensor.nbytes
        return size >= PARALLEL_BYTES and all(tensor.is_contiguous() for tensor in self.inputs)

    def __str__(self) -> str:
        words = [self.reduction] if self.reduction else []
        words += [f"{shape_text(tensor)}" for tensor in self.inputs]
        if self.kind == "all_to_all":
            words += [f"out {self.splits[0]}", f"in {self.splits[1]}"]
        if self.kind == "broadcast":
            words.append(f"from {self.root}")
        return f"{self.kind}({', '.join(words)})"


def call_of(
    kind: Any, reduction: Any, root: int, tensor: Any, received: list[int], sent: list[int]
) -> CollectiveCall:
    """What a rank has called, as C++ has it."""
    how = "" if reduction.name == "none" else reduction.name
    tensors = [] if tensor is None else [tensor]  # of a rank that has not come, or is gone
    return CollectiveCall(kind.name, tensors, reduction=how, root=root, splits=(received, sent))


def mismatch(calls: list[CollectiveCall]) -> str | None:
    """Why the calls of ranks 0..n-1 cannot be carried out, or None."""
    first = calls[0]
    if first.reduction == "avg" and not all(x.is_floating_point() or x.is_complex() for x in first.inputs):
        return f"{first}: integers have no average in their dtype; use sum, or convert to a float"
    same = all(call.agrees(first) for call in calls[1:])
    if same and first.kind == "all_to_all":
        same = all(
            receiver.splits[0][rank] == sender.splits[1][target]
            for rank, sender in enumerate(calls)
            for target, receiver in enumerate(calls)
        )
    if same:
        return None
    return "the ranks disagree about a collective:" + "".join(
        f"\n  rank {rank}: {call}" for rank, call in enumerate(calls)
    )


def carry_out(calls: list[CollectiveCall], targets: range) -> None:
    """Do the part of a collective that belongs to the ranks `targets`; all parts together are the whole."""
    if torch.is_grad_enabled():  # in-place writes must not be recorded; entering no_grad is not free
        with torch.no_grad():
            return _COLLECTIVES[calls[0].kind](calls, targets)
    return _COLLECTIVES[calls[0].kind](calls, targets)


def issue(calls: list[CollectiveCall], streams: Sequence[Any]) -> bool:
    """Whether NCCL has been given a collective of all ranks, on their streams; False: it cannot do this one.

    All ranks' parts are started in one go by the thread that calls this.
    """
    start = _BY_NCCL.get(calls[0].kind)
    if start is None or not all(map(_for_nccl, zip(*(call.tensors() for call in calls), strict=True))):
        return False
    for tensors in zip(
        *(zip(call.inputs, call.outputs or call.inputs, strict=True) for call in calls), strict=True
    ):
        inputs, outputs = zip(*tensors, strict=True)
        start(calls[0], inputs, outputs, list(streams))
    return True


def _for_nccl(tensors: Sequence[Tensor]) -> bool:
    """Whether NCCL takes the ranks' tensors: of its dtypes, dense, and each on a GPU of its own."""
    alike = tensors[0].dtype in _NCCL_DTYPES and all(tensor.numel() for tensor in tensors)
    return alike and distributed.nccl_available() and nccl.is_available(tensors)


_NCCL_DTYPES = frozenset(
    (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int8,
        torch.uint8,
    )
)
_NCCL_REDUCTIONS = {"sum": 0, "product": 1, "max": 2, "min": 3, "avg": 4}
_BY_NCCL: dict[str, Callable[[CollectiveCall, Any, Any, list[Any]], object]] = {
    "all_reduce": lambda call, inputs, outputs, streams: nccl.all_reduce(
        inputs, outputs, _NCCL_REDUCTIONS[call.reduction], streams
    ),
    "all_gather": lambda call, inputs, outputs, streams: nccl.all_gather(inputs, outputs, streams),
    "reduce_scatter": lambda call, inputs, outputs, streams: nccl.reduce_scatter(
        inputs, outputs, _NCCL_REDUCTIONS[call.reduction], streams
    ),
    "broadcast": lambda call, inputs, outputs, streams: nccl.broadcast(inputs, call.root, streams),
}


def reduce(inputs: list[Tensor], reduction: str, out: Tensor) -> None:
    """Reduce in rank order into `out`, which may be inputs[0]; narrow floats are added up in float32."""
    wide = out.dtype in _NARROW and reduction in ("sum", "avg", "product")
    total = inputs[0].float() if wide else out
    if not wide and out is not inputs[0]:
        out.copy_(inputs[0])
    for each in inputs[1:]:
        _combine(total, each.to(total.device), reduction)
    if reduction == "avg":
        total.div_(len(inputs))
    if total is not out:
        out.copy_(total)


def _combine(total: Tensor, other: Tensor, reduction: str) -> None:
    if reduction in ("sum", "avg"):
        total.add_(other)
    elif reduction == "product":
        total.mul_(other)
    elif reduction == "max":
        torch.maximum(total, other, out=total)
    else:
        torch.minimum(total, other, out=total)


def _all_reduce(calls: list[CollectiveCall], targets: range) -> None:
    whole = len(targets) == len(calls)
    for inputs in zip(*(call.inputs for call in calls), strict=True):
        mine = list(inputs) if whole else [_section(each, targets.start, len(calls)) for each in inputs]
        reduce(mine, calls[0].reduction, out=mine[0])
        for each in mine[1:]:
            each.copy_(mine[0])


def _section(tensor: Tensor, index: int, count: int) -> Tensor:
    start, end = (tensor.numel() * i // count for i in (index, index + 1))
    return tensor.view(-1)[start:end]


def _all_gather(calls: list[CollectiveCall], targets: range) -> None:
    for target in targets:
        for i, out in enumerate(calls[target].outputs):
            rows = out.shape[0] // len(calls)
            for source, call in enumerate(calls):
                out.narrow(0, source * rows, rows).copy_(call.inputs[i])


def _reduce_scatter(calls: list[CollectiveCall], targets: range) -> None:
    for target in targets:
        for i, out in enumerate(calls[target].outputs):
            rows = out.shape[0]
            inputs = [call.inputs[i].narrow(0, target * rows, rows) for call in calls]
            reduce(inputs, calls[0].reduction, out)


def _all_to_all(calls: list[CollectiveCall], targets: range) -> None:
    for target in targets:
        pieces = calls[target].outputs[0].split(calls[target].splits[0])
        for source, call in enumerate(calls):
            sent = call.splits[1]
            pieces[source].copy_(call.inputs[0].narrow(0, sum(sent[:target]), sent[target]))


def _broadcast(calls: list[CollectiveCall], targets: range) -> None:
    root = calls[0].root
    for target in targets:
        if target != root:
            for mine, theirs in zip(calls[target].inputs, calls[root].inputs, strict=True):
                mine.copy_(theirs)


_COLLECTIVES: dict[str, Callable[[list[CollectiveCall], range], None]] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "broadcast": _broadcast,
}
