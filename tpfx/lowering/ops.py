"""What one rank does for an op whose rule names a lowering: it writes the nodes and returns the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from torch.fx import Node

from ..ir.annotations import bound_of, dims_of, layout_of
from ..ir.axes import Dim, find
from ..ir.layout import Partial, carries, local_size
from ..ir.nodes import arguments, tensor_nodes
from ..ir.shards import Pieces, count_below, pieces
from ..kernels.lookups import (
    embedding_backward_shard,
    embedding_shard,
    gather_shard,
    scaled_shard,
    scatter_shard,
)
from ..rules.rule import Lowering
from ..rules.views import bounds
from ..torch_internals.inductor import linear_of_onednn
from .rank_graph import Rank, emit_shape, split_of
from .shard_calls import call_on_shards, size_or_unit

aten = torch.ops.aten


def _linear(local: Rank, node: Node) -> Node:
    """A product by the fastest kernel of the device."""
    x, weight, *bias = tensor_nodes(node)
    product, inner = x.meta["val"], local_size(dims_of(weight)[-1], split_of(node), local.rank)
    if product.device.type == "cpu" and product.dtype is torch.float32 and inner != 0 and not bias:
        faster = linear_of_onednn(local.of(x), local.of(weight))
        if faster is not None:
            return local.call(*faster)
    return local.graph.node_copy(node, local.of)


def _embedding(local: Rank, node: Node) -> Node:
    args, split = local.args(node), split_of(node)
    table = dims_of(next(iter(tensor_nodes(node))))[0]
    if not carries(table, split):
        return local.call(aten.embedding.default, args["weight"], args["indices"])
    owned = pieces(table, split, local.rank)
    return local.call(embedding_shard, args["weight"], args["indices"], owned, find(table).size)


def _embedding_backward(local: Rank, node: Node) -> Node:
    args, split, rows = local.args(node), split_of(node), dims_of(node)[0]
    if not carries(rows, split):
        return local.graph.node_copy(node, local.of)
    owned = pieces(rows, split, local.rank)
    given = args["grad_output"], args["indices"], args["padding_idx"]
    return local.call(embedding_backward_shard, *given, owned, find(rows).size)


def _gather(local: Rank, node: Node) -> Node:
    found = _split_dim(local, node)
    if found is None:
        return local.graph.node_copy(node, local.of)
    args, (dim, at, owned) = local.args(node), found
    return local.call(gather_shard, args["self"], at, args["index"], owned, find(dim).size)


def _scatter(local: Rank, node: Node) -> Node:
    found = _split_dim(local, node)
    if found is None:
        return local.graph.node_copy(node, local.of)
    (dim, at, owned), (target, _, index, *rest) = found, local.args(node).values()
    where = {"owned": owned, "size": find(dim).size}
    return local.call(scatter_shard, node.target, target, at, index, *rest, **where)


def _mean(local: Rank, node: Node) -> Node:
    """A mean over a split dimension: this rank's sum over it, of the means over the others, by its size."""
    if not isinstance(layout_of(node), Partial):
        return local.graph.node_copy(node, local.of)
    args, split = local.args(node), split_of(node)
    dims = dims_of(next(iter(tensor_nodes(node))))
    touched = [index % len(dims) for index in args.get("dim") or range(len(dims))]
    others = [index for index in touched if not carries(dims[index], split)]
    keep, dtype = args.get("keepdim", False), args.get("dtype")
    value = local.call(aten.mean.dim, args["self"], others, True, dtype=dtype) if others else args["self"]
    total = local.call(aten.sum.dim_IntList, value, touched, keep, dtype=dtype)
    return local.call(
        aten.div.Scalar, total, _whole_count(dims[index] for index in touched if index not in others)
    )


def _whole_count(dims: Iterable[Dim]) -> int:
    sizes = [find(dim).size for dim in dims]
    return math.prod(size for size in sizes if isinstance(size, int))


def _extreme(local: Rank, node: Node) -> Node:
    """A maximum or minimum of a rank's shard; of nothing, the value that loses against every other."""
    args, split = local.args(node), split_of(node)
    value, operand = args["self"], next(iter(tensor_nodes(node)))
    losing = _losing(operand.meta["val"].dtype, node.target is aten.amax.default)
    dims = dims_of(operand)
    if isinstance(layout_of(node), Partial):
        for index, dim in enumerate(dims):
            if carries(dim, split) and local_size(dim, split, local.rank) == 0:
                value = local.call(
                    aten.constant_pad_nd, value, [0, 0] * (len(dims) - 1 - index) + [0, 1], losing
                )
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
    """Rows must be multiples of 16 bytes: a shard's that are not are padded with zeros."""
    tokens, weights, split = *list(tensor_nodes(node))[:2], split_of(node)
    if weights.meta["val"].dim() == 2:
        return local.graph.node_copy(node, local.of)
    args, align = dict(local.args(node)), 16 // tokens.meta["val"].element_size()
    inner, outer = (local_size(dim, split, local.rank) for dim in dims_of(weights)[1:])
    assert isinstance(inner, int) and isinstance(outer, int), "weights have fixed sizes"
    more = [-size % align if size else align for size in (inner, outer)]
    if any(more):
        args["self"] = local.call(aten.constant_pad_nd, args["self"], [0, more[0]])
        args["mat2"] = local.call(aten.constant_pad_nd, args["mat2"], [0, more[1], 0, more[0]])
    result = local.call(aten._grouped_mm.default, *args.values())
    return local.call(aten.slice.Tensor, result, -1, 0, outer) if more[1] else result


def _split_dim(local: Rank, node: Node) -> tuple[Dim, int, Pieces] | None:
    """The split dimension that an op works along, its index, and what this rank holds; None: it is whole."""
    source = next(iter(tensor_nodes(node)))
    dims, split = dims_of(source), split_of(node)
    if not dims:  # a number
        return None
    at = arguments(node)["dim"] % len(dims)
    return (dims[at], at, pieces(dims[at], split, local.rank)) if carries(dims[at], split) else None


def _slice(local: Rank, node: Node) -> Node:
    found = _split_dim(local, node)
    args = arguments(node)
    if found is None:
        return local.graph.node_copy(node, local.of)
    dim, at, owned = found
    limits = bounds(args["start"], args["end"], find(dim).size)
    assert limits is not None
    start, stop = (count_below(owned, limit) for limit in limits)
    return local.call(aten.slice.Tensor, local.of(next(iter(tensor_nodes(node)))), at, start, stop)


def _slice_backward(local: Rank, node: Node) -> Node:
    """The slice in its place in this rank's shard of the whole."""
    args, split, dims = arguments(node), split_of(node), dims_of(node)
    at = args["dim"] % len(dims)
    own = dict(local.args(node))
    own["input_sizes"] = emit_shape(local, dims, own["input_sizes"], split)
    if carries(dims[at], split):
        limits = bounds(args["start"], args["end"], find(dims[at]).size)
        assert limits is not None
        owned = pieces(dims[at], split, local.rank)
        own["start"], own["end"] = (count_below(owned, limit) for limit in limits)
    return local.call(aten.slice_backward.default, *own.values())


def _convolution(local: Rank, node: Node) -> Any:
    """A convolution, or its backward, of this rank's groups and channels."""
    args, split, bound = arguments(node), split_of(node), bound_of(node)
    assert bound is not None
    position = list(tensor_nodes(node)).index(args["weight"])
    entering, inside = bound.operands[position - 1][1], bound.operands[position][1]
    leaving = (bound.operands if position == 2 else bound.results)[0][1]
    side = leaving if args["transposed"] else entering  # of which each group has what is inside the weight
    groups = size_or_unit(local, side, split) // size_or_unit(local, inside, split)
    return call_on_shards(local, node, groups=groups)


def _select(local: Rank, node: Node) -> Node:
    found = _split_dim(local, node)
    if found is None:
        return local.graph.node_copy(node, local.of)
    dim, at, owned = found
    size = find(dim).size
    assert isinstance(size, int)
    index = count_below(owned, arguments(node)["index"] % size)
    return local.call(aten.select.int, local.of(next(iter(tensor_nodes(node)))), at, index)


def _split(local: Rank, node: Node) -> Node:
    found = _split_dim(local, node)
    if found is None:
        return local.graph.node_copy(node, local.of)
    _, at, owned = found
    ends = [0]
    for value in node.meta["val"]:
        ends.append(ends[-1] + int(value.shape[at]))
    sizes = [count_below(owned, stop) - count_below(owned, start) for start, stop in pairwise(ends)]
    return local.call(aten.split_with_sizes.default, local.of(next(iter(tensor_nodes(node)))), sizes, at)


def _group_norm(local: Rank, node: Node) -> Any:
    """The norm of this rank's groups, or of its shard of the batch."""
    args, split = arguments(node), split_of(node)
    batch, channels = dims_of(next(iter(tensor_nodes(node))))[:2]
    changed: dict[str, Any] = {}
    if carries(batch, split):
        changed["N"] = size_or_unit(local, batch, split)
    if carries(channels, split):
        changed["C"] = size_or_unit(local, channels, split)
        changed["group"] = args["group"] * changed["C"] // int(find(channels).size)
    return call_on_shards(local, node, **changed)


def _packed_linear(local: Rank, node: Node) -> Node:
    """A product with this rank's rows and columns of a packed matrix; of none of them, empty or zeros."""
    x, split, args = next(iter(tensor_nodes(node))), split_of(node), dict(local.args(node))
    given, made = ([local_size(dim, split, local.rank) for dim in dims_of(one)] for one in (x, node))
    args["shapeB"] = [made[-1], given[-1]]
    if 0 in (*given, *made):
        empty = local.call(aten.new_zeros.default, args["A"], args["shapeB"])
        return local.call(aten.linear.default, args["A"], empty)
    return local.call(node.target, *args.values())  # type: ignore[arg-type]


def _unpacked(local: Rank, node: Node) -> Node:
    """This rank's rows and columns of a packed matrix."""
    split, args = split_of(node), dict(local.args(node))
    args["shape"] = [local_size(dim, split, local.rank) for dim in dims_of(node)]
    if 0 in args["shape"]:
        return local.call(aten.new_zeros.default, args["absmax"], args["shape"], dtype=args["dtype"])
    return local.call(node.target, *args.values())  # type: ignore[arg-type]


def _by_block(local: Rank, node: Node) -> Node:
    """Numbers by the scales of their blocks, which may end in the middle of what this rank has."""
    (dim,), split = dims_of(node), split_of(node)
    if not carries(dim, split):
        return local.graph.node_copy(node, local.of)
    return local.call(scaled_shard, *local.args(node).values(), pieces(dim, split, local.rank))


LOWERINGS: dict[Lowering, Callable[[Rank, Node], Any]] = {
    Lowering.BY_BLOCK: _by_block,
    Lowering.CONVOLUTION: _convolution,
    Lowering.EMBEDDING: _embedding,
    Lowering.EMBEDDING_BACKWARD: _embedding_backward,
    Lowering.EXTREME: _extreme,
    Lowering.GATHER: _gather,
    Lowering.GROUPED_MM: _grouped_mm,
    Lowering.GROUP_NORM: _group_norm,
    Lowering.LINEAR: _linear,
    Lowering.MEAN: _mean,
    Lowering.PACKED_LINEAR: _packed_linear,
    Lowering.SCATTER: _scatter,
    Lowering.SELECT: _select,
    Lowering.SLICE: _slice,
    Lowering.SLICE_BACKWARD: _slice_backward,
    Lowering.SPLIT: _split,
    Lowering.SQUEEZE: _squeeze,
    Lowering.UNPACKED: _unpacked,
}
