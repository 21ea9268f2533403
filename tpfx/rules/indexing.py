"""Rules of lookups and writes by index tensors: what is indexed is whole, the other dimensions are free."""

from __future__ import annotations

import torch
from torch.fx import Node

from ..ir.axes import Dim, axes, find, has_intervals
from ..ir.nodes import is_tensor
from ..ir.op_dims import Bound, Call, Dims
from .rule import Rule
from .whole_dims import checked, unknown, unsplit


def embedding_bag(call: Call) -> Bound:
    """Sums, means or maxima of rows of a table, each column by itself; what lies in which bag is whole."""
    return Rule(f"v! d, n!, o!, w! -> b! d, i!, s!, {largest(call.results[3])}").bind(call)


def largest(rows: Node | torch.Tensor) -> str:
    """The rows that bags have their maxima of, one for each column; of sums and means, a number a bag."""
    value = rows.meta["val"] if isinstance(rows, Node) else rows
    return "b! d" if value.dim() == 2 else "m!"


def segments(call: Call) -> Bound:
    """Reductions of segments of the first dimension, which is whole, the same segments at every other index.

    Their gradient too, of which the operands are the results' gradient, the results, and what was reduced.
    """
    if call["axis"] != 0 or any(len(dims) > 1 for dims in call.dims[-1:]):
        return unsplit(call)
    if "grad" in call.args:
        return Rule("s! ..., s! ..., n! ..., l!, o! -> n! ...").bind(call)
    return Rule("n! ..., l!, i!, o! -> s! ...").bind(call)


def index_select(call: Call) -> Bound:
    """Indices along one dimension, which must be whole."""
    bound = Bound(call.dims, [])
    at = call.dim(call["dim"])
    result = list(call.dims[0])
    bound.whole += [*result[at : at + 1], *call.dims[1]]
    result[at : at + 1] = unknown(bound, call.result_sizes()[at : at + 1])
    bound.results = [checked(bound, call, result)]
    return bound


def gather(call: Call) -> Bound:
    """An index for every element: whole along the dimensions that the index cuts short.

    Its own dimension is contracted: each rank has the elements that it holds, and zeros for the others.
    """
    bound = Bound(call.dims, [])
    at = call.dim(call["dim"])
    source, indices = call.dims
    if len(source) != len(indices):  # one of them a number
        return unsplit(call)
    for position, (left, right) in enumerate(zip(source, indices, strict=True)):
        if position == at:
            bound.whole.append(right)
            (bound.contracted if _adds(call) and has_intervals(left) else bound.whole).append(left)
        elif find(left).size != find(right).size:
            bound.whole += [left, right]
        else:
            bound.match(left, right)
    bound.results = [checked(bound, call, list(indices))]
    return bound


def _adds(call: Call) -> bool:
    """Whether the elements of the result are numbers: partial sums of truth values are not summed."""
    dtype = call.results[0].dtype
    return dtype.is_floating_point or dtype in (torch.int32, torch.int64)


def _indexed(call: Call) -> tuple[list[int], bool]:
    """Which dimensions have an index tensor, masks as many as their own; whether they are side by side."""
    given: list[int] = []
    at = 0
    for item in call["indices"]:
        count = item.meta["val"].dim() if isinstance(item, Node) and _is_mask(item) else 1
        given += range(at, at + count) if isinstance(item, Node) else ()
        at += count
    return given, given == list(range(given[0], given[-1] + 1)) if given else True


def _is_mask(index: Node) -> bool:
    return index.meta["val"].dtype in (torch.bool, torch.uint8)


def _index_broadcast(call: Call, bound: Bound) -> Dims | None:
    """The dimensions that the index tensors make together; all whole. None: the values of a mask tell."""
    tensors = [item for item in call["indices"] if isinstance(item, Node)]
    operands = call.dims[1 : 1 + len(tensors)]
    bound.whole += [dim for dims in operands for dim in dims]
    if any(map(_is_mask, tensors)):
        return None
    shapes = [item.meta["val"].shape for item in tensors]
    return [Dim(call.size(size)) for size in torch.broadcast_shapes(*shapes)]


def index(call: Call) -> Bound:
    """Advanced indexing: indexed dimensions and index tensors are whole, the others free."""
    bound = Bound(call.dims, [])
    source = call.dims[0]
    given, adjacent = _indexed(call)
    free = [dim for position, dim in enumerate(source) if position not in given]
    before = given[0] if adjacent and given else 0
    made = _index_broadcast(call, bound)
    if made is None:
        sizes = call.result_sizes()
        made = [Dim(size) for size in sizes[before : before + len(sizes) - len(free)]]
    bound.whole += made + [source[position] for position in given]
    bound.results = [checked(bound, call, [*free[:before], *made, *free[before:]])]
    return bound


def index_put(call: Call) -> Bound:
    """Writes by index tensors: indexed dimensions are whole, the others are those of the values too."""
    bound = Bound(call.dims, [list(call.dims[0])])
    source, values = call.dims[0], call.dims[-1]
    given, adjacent = _indexed(call)
    free = [dim for position, dim in enumerate(source) if position not in given]
    before = given[0] if adjacent and given else 0
    made = _index_broadcast(call, bound)
    if made is None:  # of masks alone, one dimension
        if not all(map(_is_mask, filter(is_tensor, call["indices"]))):
            return unsplit(call)
        rows = values[len(values) - len(free) - 1 + before :] if len(values) > len(free) - before else []
        made = rows[:1] or [Dim(1)]
    bound.whole += made + [source[position] for position in given]
    target = [*free[:before], *made, *free[before:]]
    for left, right in zip(reversed(target), reversed(values), strict=False):
        if find(right).size != 1:
            bound.match(left, right)
    return bound


def index_copy(call: Call) -> Bound:
    """Writes along one dimension, which must be whole."""
    bound = Bound(call.dims, [list(call.dims[0])])
    at = call.dim(call["dim"])
    target, indices, source = call.dims
    if len(target) != len(source):  # one of them a number
        return unsplit(call)
    bound.whole += [*target[at : at + 1], *source[at : at + 1], *indices]
    for position, (left, right) in enumerate(zip(target, source, strict=True)):
        if position != at:
            bound.match(left, right)
    return bound


def slice_scatter(call: Call) -> Bound:
    """A tensor with a slice of one dimension, or one index of it, replaced: that dimension is whole."""
    bound = Bound(call.dims, [list(call.dims[0])])
    target, source = call.dims
    at = call.dim(call["dim"])
    bound.whole.append(target[at])
    others = [dim for position, dim in enumerate(target) if position != at]
    if len(source) == len(target):
        bound.whole.append(source[at])
        source = [dim for position, dim in enumerate(source) if position != at]
    for left, right in zip(others, source, strict=True):
        bound.match(left, right)
    bound.linear = ((0, 1),)
    return bound


def diagonal_scatter(call: Call) -> Bound:
    """A tensor with a diagonal replaced: its two dimensions are whole, and the last of what is written."""
    target, source = call.dims
    bound = Bound(call.dims, [list(target)])
    pair = {call.dim(call[name]) for name in ("dim1", "dim2")}
    bound.whole += [*(target[at] for at in pair), source[-1]]
    for left, right in zip((dim for at, dim in enumerate(target) if at not in pair), source, strict=False):
        bound.match(left, right)
    bound.linear = ((0, 1),)
    return bound


def scatter(call: Call) -> Bound:
    """A write for every element of an index: whole along its dimension and those that it cuts short."""
    bound = Bound(call.dims, [list(call.dims[0])])
    at = call.dim(call["dim"])
    target, *written = call.dims
    for dims in written:
        for position, (left, right) in enumerate(zip(target, dims, strict=False)):
            if position == at or find(left).size != find(right).size:
                bound.whole += [left, right]
            else:
                bound.match(left, right)
        bound.whole += dims[len(target) :]
    return bound


def scatter_to_shards(call: Call) -> Bound:
    """As `scatter`, and each rank writes what falls into its shard of the dimension."""
    bound, at = scatter(call), call.dim(call["dim"])
    if not call.dims[0]:  # a number
        return bound
    target = call.dims[0][at]
    if has_intervals(target) and all(
        axes(target).isdisjoint(axes(dims[at])) for dims in call.dims[1:] if dims
    ):
        bound.whole = [dim for dim in bound.whole if dim is not target]
    return bound


def index_add(call: Call) -> Bound:
    """Sums along one dimension, which must be whole."""
    bound = index_copy(call)
    bound.linear = ((0, 2),)
    return bound


def index_fill(call: Call) -> Bound:
    """One number at some indices of a dimension, which must be whole."""
    bound = Bound(call.dims, [list(call.dims[0])])
    at = call.dim(call["dim"])
    bound.whole += [*call.dims[0][at : at + 1], *(dim for dims in call.dims[1:] for dim in dims)]
    return bound


def isin(call: Call) -> Bound:
    """Each element by itself, looked for among all of the others."""
    bound = Bound(call.dims, [list(call.dims[0])])
    bound.whole += call.dims[1]
    return bound


def take(call: Call) -> Bound:
    """Elements of a tensor that is read as if it were flat, and so whole: each index by itself."""
    return Bound(call.dims, [list(call.dims[1])], whole=list(call.dims[0]))


def searchsorted(call: Call) -> Bound:
    """Places in a sorted sequence, which is whole; where there are several, each has its own values."""
    lead = "" if len(call.dims[0]) == 1 and not call.get("sorter") else "... "
    values = "... q" if lead else "..."
    order = f", {lead}s!" if call.get("sorter") is not None else ""
    return Rule(f"{lead}s!, {values}{order} -> {values}").bind(call)
