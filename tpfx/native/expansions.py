"""What a rank's graph calls that is written in Python, as ATen ops, where the ops do not depend on shapes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from ..ir.layout import Unfolding
from ..ir.shards import Pieces, SplitDims
from ..kernels.collectives import gather_shards
from ..kernels.lookups import embedding_backward_shard, embedding_shard, gather_shard, scatter_shard
from ..kernels.slices import take, take_unfolded

aten = torch.ops.aten
c10d = torch.ops._c10d_functional

Emit = Callable[..., Node]

ORIGIN = "expanded_from"  # in the meta of a node that is called otherwise: that which it is made of


def expanded(graph: Graph, gathers: bool) -> Graph:
    """A copy of a graph, with ops in the place of functions; `gathers`: of those that gather shards too."""
    made = Graph()
    known: dict[Node, Node] = {}
    for node in graph.nodes:
        stays = node.target is gather_shards and not gathers
        found = None if stays else _expand(made, node, known)
        known[node] = _copied(made, node, known) if found is None else found
        if node.op == "output":
            return made
    return made


def _copied(graph: Graph, node: Node, known: dict[Node, Node]) -> Node:
    """The same node; if what it is called has been taken by an op of an expansion, it knows its name."""
    made = graph.node_copy(node, known.__getitem__)
    if made.name != node.name:
        made.meta[ORIGIN] = node.name
    return made


def _expand(graph: Graph, node: Node, known: dict[Node, Node]) -> Node | None:
    """The last of the ops that a node becomes; None where it stays as it is."""
    expand = _EXPANSIONS.get(node.target) if node.op == "call_function" else None
    if expand is None:
        return None

    def emit(op: Any, *args: Any) -> Node:
        call = graph.call_function(op, args)
        call.meta[ORIGIN] = node.name
        return call

    args = map_arg(node.args, known.__getitem__)
    return expand(emit, *args, **node.kwargs)


def _place(emit: Emit, ids: Node, owned: Pieces, size: int) -> tuple[Node, Node]:
    """`lookups.place`, of one interval."""
    ((start, stop),) = owned
    before = emit(aten.logical_and.default, emit(aten.ge.Scalar, ids, 0), emit(aten.lt.Scalar, ids, start))
    after = emit(aten.logical_and.default, emit(aten.ge.Scalar, ids, stop), emit(aten.lt.Scalar, ids, size))
    return emit(aten.sub.Tensor, ids, start), emit(aten.logical_or.default, before, after)


def _embedding_shard(emit: Emit, weight: Node, ids: Node, owned: Pieces, size: int) -> Node | None:
    if len(owned) != 1:
        return None
    here, elsewhere = _place(emit, ids, owned, size)
    rows = emit(aten.embedding.default, weight, emit(aten.masked_fill.Scalar, here, elsewhere, 0))
    return emit(aten.masked_fill.Scalar, rows, emit(aten.unsqueeze.default, elsewhere, -1), 0)


def _gather_shard(emit: Emit, shard: Node, dim: int, index: Node, owned: Pieces, size: int) -> Node | None:
    if len(owned) != 1:
        return None
    here, elsewhere = _place(emit, index, owned, size)
    found = emit(aten.gather.default, shard, dim, emit(aten.masked_fill.Scalar, here, elsewhere, 0))
    return emit(aten.masked_fill.Scalar, found, elsewhere, 0)


def _scatter_shard(
    emit: Emit, op: Any, shard: Node, dim: int, index: Node, *rest: Any, owned: Pieces, size: int
) -> Node | None:
    if len(owned) != 1:
        return None
    ((start, stop),) = owned
    here, elsewhere = _place(emit, index, owned, size)
    one_more = emit(aten.slice.Tensor, shard, dim, 0, 1)
    room = emit(aten.cat.default, [shard, one_more], dim)
    there = emit(aten.masked_fill.Scalar, here, elsewhere, stop - start)
    return emit(aten.slice.Tensor, emit(op, room, dim, there, *rest), dim, 0, stop - start)


def _embedding_backward_shard(
    emit: Emit, gradient: Node, ids: Node, padding: int, owned: Pieces, size: int
) -> Node | None:
    if len(owned) != 1:
        return None
    ((start, stop),) = owned
    here, elsewhere = _place(emit, ids, owned, size)
    unwanted = emit(aten.logical_or.default, elsewhere, emit(aten.eq.Scalar, ids, padding))
    there = emit(aten.masked_fill.Scalar, here, unwanted, stop - start)
    made = emit(aten.embedding_dense_backward.default, gradient, there, stop - start + 1, -1, False)
    return emit(aten.slice.Tensor, made, 0, 0, stop - start)


def _gather_shards(
    emit: Emit,
    shard: Node,
    dims: SplitDims,
    shape: Sequence[int],
    rank: int,
    ranks: int,
    group: str,
    unfolding: Unfolding,
) -> Node | None:
    """Where ranks have equal parts of one dimension, in order; others are padded and cut, in Python."""
    if unfolding or len(dims) != 1:
        return None
    ((dim, owned),) = dims
    size = shape[dim] // ranks
    if owned != tuple(((rank * size, (rank + 1) * size),) for rank in range(ranks)):
        return None
    dense = emit(aten.contiguous.default, shard)
    gathered = emit(c10d.wait_tensor.default, emit(c10d.all_gather_into_tensor.default, dense, ranks, group))
    if dim == 0:
        return gathered
    return emit(aten.cat.default, emit(aten.chunk.default, gathered, ranks, 0), dim)


def _take(emit: Emit, whole: Node, dims: SplitDims, rank: int) -> Node | None:
    if not dims:
        return None
    for dim, owned in dims:
        intervals: Sequence[tuple[int, int]] = owned[rank] or ((0, 0),)
        parts = [emit(aten.slice.Tensor, whole, dim, start, stop) for start, stop in intervals]
        whole = parts[0] if len(parts) == 1 else emit(aten.cat.default, parts, dim)
    return whole


def _take_unfolded(emit: Emit, whole: Node, dims: SplitDims, rank: int, unfolding: Unfolding) -> Node | None:
    if not all(type(size) is int for _, sizes in unfolding for size in sizes):
        return None
    apart = whole
    for dim, sizes in unfolding:
        apart = emit(aten.unflatten.int, apart, dim, list(sizes))
    own = _take(emit, apart, dims, rank) or apart
    for dim, sizes in reversed(unfolding):
        own = emit(aten.flatten.using_ints, own, dim, dim + len(sizes) - 1)
    return own if own is not whole else None


def _sum_of_sizes(emit: Emit, terms: Sequence[Any]) -> Node | None:
    return reduce(partial(emit, operator.add), terms) if len(terms) > 1 else None


_EXPANSIONS: dict[Any, Callable[..., Node | None]] = {
    embedding_shard: _embedding_shard,
    embedding_backward_shard: _embedding_backward_shard,
    gather_shard: _gather_shard,
    gather_shards: _gather_shards,
    scatter_shard: _scatter_shard,
    take: _take,
    take_unfolded: _take_unfolded,
    torch.sym_sum: _sum_of_sizes,
}
