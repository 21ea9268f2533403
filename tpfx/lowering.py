"""What one rank does for an op, where calling the op on local tensors is not enough.

A rule's `lower` column names a function here: it writes the nodes into the rank's graph and returns the result. Ops
that only a rank needs (a lookup in its part of the vocabulary) are plain functions of tensors, made of ATen ops.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from .annotations import choice_of, dims_of, layout_of
from .axes import Dim, find
from .layout import (
    Partial,
    Pieces,
    Split,
    SplitDims,
    Unfolding,
    carries,
    concrete,
    count_below,
    local_size,
    pieces,
    unfold,
)
from .rules import Dims, arguments, tensor_nodes
from .shapes import bounds

aten = torch.ops.aten
c10d = torch.ops._c10d_functional


@dataclass
class Rank:
    """One rank's graph as it is written, and what has been made of each node of the parallel graph."""

    graph: Graph
    rank: int
    ranks: int
    group: str
    made: dict[Node, Any] = field(default_factory=dict)

    def of(self, node: Node) -> Any:
        """The rank's node for a node of the parallel graph."""
        return self.made[node]

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """Add a call to the rank's graph."""
        return self.graph.call_function(target, args, kwargs)

    def args(self, node: Node) -> dict[str, Any]:
        """A node's arguments by name, its operands those of the rank."""
        named: dict[str, Any] = map_arg(arguments(node), self.of)  # type: ignore[assignment]
        return named


def split_of(node: Node) -> Split:
    """The split that an op is carried out in."""
    choice = choice_of(node)
    assert choice is not None
    return next(layout for layout in (*choice.operands, *choice.results) if isinstance(layout, Split))


# Functions that a rank's graph calls.


def embedding_shard(weight: torch.Tensor, ids: torch.Tensor, start: int, stop: int, size: int) -> torch.Tensor:
    """Rows `start` to `stop` of a table of `size` rows, looked up; zero for ids of other ranks.

    An id outside the table stays outside the part as well, so that the lookup itself reports it.
    """
    elsewhere = ((ids >= 0) & (ids < start)) | ((ids >= stop) & (ids < size))
    if start == stop:
        return weight.new_zeros((*ids.shape, weight.shape[-1]))
    rows = aten.embedding(weight, torch.where(elsewhere, 0, ids - start))
    return rows.masked_fill(elsewhere.unsqueeze(-1), 0)


def take(whole: torch.Tensor, dims: SplitDims, rank: int) -> torch.Tensor:
    """A rank's part of a whole tensor; a view where it is one interval of each dimension."""
    for dim, owned in dims:
        parts = [whole.narrow(dim, start, stop - start) for start, stop in owned[rank]]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim) if parts else whole.narrow(dim, 0, 0)
    return whole


def take_unfolded(whole: torch.Tensor, dims: SplitDims, rank: int, unfolding: Unfolding) -> torch.Tensor:
    """`take`, of a tensor some of whose dimensions are products of a size that varies."""
    return _fold(take(_unfold(whole, unfolding), dims, rank), unfolding)


def _unfold(value: torch.Tensor, unfolding: Unfolding) -> torch.Tensor:
    for dim, sizes in unfolding:
        value = value.unflatten(dim, sizes)
    return value


def _fold(value: torch.Tensor, unfolding: Unfolding) -> torch.Tensor:
    for dim, sizes in reversed(unfolding):
        value = value.flatten(dim, dim + len(sizes) - 1)
    return value


def join(parts: Sequence[torch.Tensor], dims: SplitDims, shape: Sequence[int]) -> torch.Tensor:
    """The whole tensor, from the part of every rank."""
    whole = parts[0].new_empty(tuple(shape))
    for rank, part in enumerate(parts):
        _paste(whole, part, [(dim, owned[rank]) for dim, owned in dims])
    return whole


def _paste(whole: torch.Tensor, part: torch.Tensor, dims: Sequence[tuple[int, Pieces]]) -> None:
    if not dims:
        whole.copy_(part)
        return
    (dim, intervals), *rest = dims
    offset = 0
    for start, stop in intervals:
        _paste(whole.narrow(dim, start, stop - start), part.narrow(dim, offset, stop - start), rest)
        offset += stop - start


def gather_shards(
    part: torch.Tensor, dims: SplitDims, shape: Sequence[int], rank: int, ranks: int, group: str, unfolding: Unfolding
) -> torch.Tensor:
    """The whole tensor on every rank; shards of unequal size are padded for the message."""
    if unfolding:
        own = {dim: sum(stop - start for start, stop in owned[rank]) for dim, owned in dims}
        for dim, sizes in unfolding:
            first = dim + sum(len(others) - 1 for other, others in unfolding if other < dim)
            part = part.unflatten(dim, [own.get(first + index, size) for index, size in enumerate(sizes)])
    shape = [extent if index not in dict(dims) else shape[index] for index, extent in enumerate(part.shape)]
    sizes = [local_shape(shape, dims, rank) for rank in range(ranks)]
    counts = [math.prod(size) for size in sizes]
    flat = part.reshape(-1)
    flat = torch.nn.functional.pad(flat, (0, max(counts) - flat.shape[0])) if flat.shape[0] < max(counts) else flat
    gathered = c10d.wait_tensor(c10d.all_gather_into_tensor(flat.contiguous(), ranks, group)).view(ranks, -1)
    parts = [gathered[rank, :count].view(size) for rank, (count, size) in enumerate(zip(counts, sizes, strict=True))]
    return _fold(join(parts, dims, shape), unfolding)


def local_shape(shape: Sequence[int], dims: SplitDims, rank: int) -> list[int]:
    """The shape of a rank's part of a tensor."""
    local = list(shape)
    for dim, owned in dims:
        local[dim] = sum(stop - start for start, stop in owned[rank])
    return local


# Collectives and conversions.


def emit_reduce(local: Rank, node: Node) -> Node:
    """Sum the ranks' addends. The addend is dead afterwards, so the sum takes its place where it can."""
    value, partial = node.args
    assert isinstance(value, Node) and isinstance(partial, Partial)
    addend = local.of(value)
    alone = len(value.users) == 1 and isinstance(addend, Node) and _owns_memory(addend)
    reduce = c10d.all_reduce_.default if alone else c10d.all_reduce.default
    if alone:
        addend = local.call(aten.contiguous.default, addend) if not _dense(addend) else addend
    return local.call(c10d.wait_tensor.default, local.call(reduce, addend, partial.op, local.group))


def _owns_memory(node: Node) -> bool:
    """Whether a value was newly made by an op that never returns one of its inputs."""
    return node.target in (aten.linear.default, aten.mm.default, aten.bmm.default, aten.add.Tensor, embedding_shard)


def _dense(node: Node) -> bool:
    return node.target in (aten.linear.default, aten.mm.default, aten.bmm.default, embedding_shard)


def emit_gather(local: Rank, node: Node) -> Node:
    """Bring every rank's part to every rank."""
    value, split = node.args
    assert isinstance(value, Node) and isinstance(split, Split)
    dims, unfolding = unfold(dims_of(value), split)
    shape = [size if isinstance(size := find(dim).size, int) else -1 for dim in dims]
    where = concrete(dims, split).dims
    return local.call(gather_shards, local.of(value), where, shape, local.rank, local.ranks, local.group, unfolding)


def emit_shard(local: Rank, node: Node) -> Node:
    """A rank's part of what it has whole."""
    value, split = node.args
    assert isinstance(value, Node) and isinstance(split, Split)
    dims, unfolding = unfold(dims_of(value), split)
    where = concrete(dims, split).dims
    if unfolding:
        return local.call(take_unfolded, local.of(value), where, local.rank, unfolding)
    return local.call(take, local.of(value), where, local.rank)


def emit_pend(local: Rank, node: Node) -> Node:
    """The value on rank 0, zeros on the others."""
    value = local.of(node.args[0])  # type: ignore[arg-type]
    return value if local.rank == 0 else local.call(aten.zeros_like.default, value)


def emit_random(local: Rank, node: Node) -> Any:
    """Rank 0 draws, from the caller's generator, what the unsharded model would; the others get its numbers."""
    drawn = local.graph.node_copy(node, local.of)
    if isinstance(node.meta["val"], torch.Tensor):
        return _broadcast(local, drawn)
    items = [local.call(operator.getitem, drawn, index) for index in range(len(node.meta["val"]))]
    return tuple(_broadcast(local, item) for item in items)


def _broadcast(local: Rank, value: Node) -> Node:
    return local.call(c10d.wait_tensor.default, local.call(c10d.broadcast.default, value, 0, local.group))


# Shapes.


def emit_shape(local: Rank, dims: Dims, given: Sequence[Any], split: Split) -> list[Any]:
    """The local shape of a tensor: what was given, with the extents that a split makes smaller."""
    return [
        _emit_extent(local, dim, extent, split) if carries(dim, split) else _known(dim, extent)
        for dim, extent in zip(dims, given, strict=True)
    ]


def _known(dim: Dim, extent: Any) -> Any:
    """An extent that was left to be inferred, where it is known: nothing can be inferred of an empty tensor."""
    size = find(dim).size
    return size if extent == -1 and isinstance(size, int) else extent


def _emit_extent(local: Rank, dim: Dim, extent: Any, split: Split) -> Any:
    size, part = find(dim).size, local_size(dim, split, local.rank)
    if isinstance(part, int):
        return part
    assert isinstance(extent, Node), f"a symbolic extent {size} that no node computes"
    whole = math.prod(int(axis.size) for axis in split.axes)
    own = math.prod(stop - start for start, stop in split.boxes[local.rank].values())
    return local.call(operator.mul, local.call(operator.floordiv, extent, whole), own)


# Ops.


def _embedding(local: Rank, node: Node) -> Node:
    args = local.args(node)
    split = split_of(node)
    weight = next(iter(tensor_nodes(node)))
    table = dims_of(weight)[0]
    if not carries(table, split):
        return local.call(aten.embedding.default, args["weight"], args["indices"])
    found, offset = [], 0
    owned = pieces(table, split, local.rank) or ((0, 0),)
    for start, stop in owned:  # usually one interval
        rows = args["weight"]
        if len(owned) > 1:
            rows = local.call(aten.slice.Tensor, rows, 0, offset, offset + stop - start)
        found.append(local.call(embedding_shard, rows, args["indices"], start, stop, find(table).size))
        offset += stop - start
    return functools.reduce(lambda left, right: local.call(aten.add.Tensor, left, right), found)


def _mean(local: Rank, node: Node) -> Node:
    """A mean over a split dimension: this rank's sum over it, by its whole size, of the mean over the others."""
    if not isinstance(layout_of(node), Partial):
        return local.graph.node_copy(node, local.of)
    args, split = local.args(node), split_of(node)
    dims = dims_of(next(iter(tensor_nodes(node))))
    touched = [index % len(dims) for index in args.get("dim") or range(len(dims))]
    others = [index for index in touched if not carries(dims[index], split)]
    keep, dtype = args.get("keepdim", False), args.get("dtype")
    value = local.call(aten.mean.dim, args["self"], others, True, dtype=dtype) if others else args["self"]
    total = local.call(aten.sum.dim_IntList, value, touched, keep, dtype=dtype)
    return local.call(aten.div.Scalar, total, _whole_count(dims[index] for index in touched if index not in others))


def _whole_count(dims: Iterable[Dim]) -> int:
    sizes = [find(dim).size for dim in dims]
    return math.prod(size for size in sizes if isinstance(size, int))


def _extreme(local: Rank, node: Node) -> Node:
    """A maximum or minimum of a rank's part; of nothing, the value that loses against every other."""
    args, split = local.args(node), split_of(node)
    value, operand = args["self"], next(iter(tensor_nodes(node)))
    losing = _losing(operand.meta["val"].dtype, node.target is aten.amax.default)
    dims = dims_of(operand)
    if isinstance(layout_of(node), Partial):
        for index, dim in enumerate(dims):
            if carries(dim, split) and local_size(dim, split, local.rank) == 0:
                value = local.call(aten.constant_pad_nd, value, [0, 0] * (len(dims) - 1 - index) + [0, 1], losing)
    return local.call(node.target, value, args["dim"], args["keepdim"])  # type: ignore[arg-type]


def _losing(dtype: torch.dtype, of_maximum: bool) -> float | bool:
    if dtype is torch.bool:
        return not of_maximum
    if dtype.is_floating_point:
        return -math.inf if of_maximum else math.inf
    return torch.iinfo(dtype).min if of_maximum else torch.iinfo(dtype).max


def _squeeze(local: Rank, node: Node) -> Node:
    """Only what is of size 1 in the whole goes, not what is so on this rank."""
    args, dims = local.args(node), dims_of(next(iter(tensor_nodes(node))))
    given = args.get("dim", range(len(dims)))
    given = [given] if isinstance(given, int) else given
    gone = [index % len(dims) for index in given if find(dims[index % len(dims)]).size == 1]
    return local.call(aten.squeeze.dims, args["self"], gone)


def _grouped_mm(local: Rank, node: Node) -> Node:
    """Rows must be multiples of 16 bytes: a part's that are not are padded with zeros."""
    tokens, weights, split = *list(tensor_nodes(node))[:2], split_of(node)
    args, align = dict(local.args(node)), 16 // tokens.meta["val"].element_size()
    inner, outer = (local_size(dim, split, local.rank) for dim in dims_of(weights)[1:])
    assert isinstance(inner, int) and isinstance(outer, int), "weights have fixed sizes"
    more = [-size % align if size else align for size in (inner, outer)]
    if any(more):
        args["self"] = local.call(aten.constant_pad_nd, args["self"], [0, more[0]])
        args["mat2"] = local.call(aten.constant_pad_nd, args["mat2"], [0, more[1], 0, more[0]])
    result = local.call(aten._grouped_mm.default, *args.values())
    return local.call(aten.slice.Tensor, result, -1, 0, outer) if more[1] else result


def _part(local: Rank, node: Node) -> tuple[Dim, int, Pieces] | None:
    """The dimension that a slice works along, its index, and this rank's intervals of it; None where it is not split."""
    source = next(iter(tensor_nodes(node)))
    dims, split = dims_of(source), split_of(node)
    at = arguments(node)["dim"] % len(dims)
    return (dims[at], at, pieces(dims[at], split, local.rank)) if carries(dims[at], split) else None


def _slice(local: Rank, node: Node) -> Node:
    part = _part(local, node)
    args = arguments(node)
    if part is None:
        return local.graph.node_copy(node, local.of)
    dim, at, owned = part
    limits = bounds(args["start"], args["end"], find(dim).size)
    assert limits is not None
    start, stop = (count_below(owned, limit) for limit in limits)
    return local.call(aten.slice.Tensor, local.of(next(iter(tensor_nodes(node)))), at, start, stop)


def _select(local: Rank, node: Node) -> Node:
    part = _part(local, node)
    if part is None:
        return local.graph.node_copy(node, local.of)
    dim, at, owned = part
    size = find(dim).size
    assert isinstance(size, int)
    index = count_below(owned, arguments(node)["index"] % size)
    return local.call(aten.select.int, local.of(next(iter(tensor_nodes(node)))), at, index)


def _split(local: Rank, node: Node) -> Node:
    part = _part(local, node)
    if part is None:
        return local.graph.node_copy(node, local.of)
    _, at, owned = part
    ends = [0]
    for value in node.meta["val"]:
        ends.append(ends[-1] + int(value.shape[at]))
    sizes = [count_below(owned, stop) - count_below(owned, start) for start, stop in zip(ends, ends[1:], strict=False)]
    return local.call(aten.split_with_sizes.default, local.of(next(iter(tensor_nodes(node)))), sizes, at)


def _attention(local: Rank, node: Node) -> Any:
    """Attention of this rank's heads, which may be none."""
    query = next(iter(tensor_nodes(node)))
    if all(local_size(dim, split_of(node), local.rank) != 0 for dim in dims_of(query)):
        return local.graph.node_copy(node, local.of)
    nothing, whole = local.of(query), query.meta["val"]
    output, logsumexp, *others = node.meta["val"]
    keep = logsumexp.dim() == whole.dim()
    sums = local.call(aten.sum.dim_IntList, nothing, [-1], keep, dtype=logsumexp.dtype)
    return (
        _resized(local, nothing, whole.shape[-1], output.shape[-1]),
        sums if keep else _resized(local, sums, whole.shape[-2], logsumexp.shape[-1]),
        *(
            local.call(aten.new_zeros, nothing, list(value.shape), dtype=value.dtype)
            if isinstance(value, torch.Tensor)
            else 0
            for value in others
        ),
    )


def _resized(local: Rank, value: Node, size: Any, wanted: Any) -> Node:
    """An empty tensor whose last dimension is another."""
    known = isinstance(size, int) and isinstance(wanted, int) and size != wanted
    return local.call(aten.constant_pad_nd, value, [0, wanted - size]) if known else value


LOWERINGS: dict[str, Callable[[Rank, Node], Any]] = {
    "attention": _attention,
    "embedding": _embedding,
    "extreme": _extreme,
    "grouped_mm": _grouped_mm,
    "mean": _mean,
    "slice": _slice,
    "select": _select,
    "split": _split,
    "squeeze": _squeeze,
}
