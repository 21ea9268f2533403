"""Rules of ops that work on each element by itself, or make values from nothing."""

from __future__ import annotations

from ..ir.axes import Dim, find
from ..ir.op_dims import Bound, Call, Dims


def size(call: Call) -> Bound:
    """How large one dimension is, which must be whole for that."""
    return Bound(call.dims, [], whole=[call.dims[0][call.dim(call["dim"])]])


def fresh(call: Call) -> Bound:
    """A value made from nothing, the same at every index: each rank makes its shard.

    An operand, as that of `new_zeros`, tells a dtype and a device, whatever a rank has of it.
    """
    return Bound(call.dims, [[Dim(size) for size in call.result_sizes()]])


def pointwise(call: Call) -> Bound:
    """Every index by itself, operands broadcast from the right."""
    bound = Bound(call.dims, [])
    for index in range(len(call.results)):
        sizes = call.result_sizes(index)
        dims: Dims = []
        for position, size in enumerate(sizes):
            meeting = [
                operand[position - len(sizes)]
                for operand in call.dims
                if len(sizes) - position <= len(operand) and find(operand[position - len(sizes)]).size == size
            ]
            dims.append(meeting[0] if meeting else Dim(size))
            for other in meeting[1:]:
                bound.match(dims[-1], other)
            if not meeting:
                bound.whole.append(dims[-1])
        bound.results.append(dims)
    _flag_unmatched(bound, call)
    return bound


def _flag_unmatched(bound: Bound, call: Call) -> None:
    """An operand's dimension whose size is neither 1 nor the result's, provably, must be whole."""
    sizes = call.result_sizes()
    for operand in call.dims:
        for dim, size in zip(reversed(operand), reversed(sizes), strict=False):
            if find(dim).size not in (1, size):
                bound.whole.append(dim)


def cast(call: Call) -> Bound:
    """A copy to another type or device; linear between floating types."""
    bound = pointwise(call)
    if floating(call):
        bound.linear = ((0,),)
    return bound


def floating(call: Call) -> bool:
    """Whether nothing is rounded on the way from the operand to the result."""
    source, result = call.operands[0].meta["val"], call.results[0]
    return bool(source.dtype.is_floating_point and result.dtype.is_floating_point)


def masked_fill(call: Call) -> Bound:
    """Linear where the masked places become zero."""
    bound = pointwise(call)
    if call["value"] == 0:
        bound.linear = ((0,),)
    return bound
