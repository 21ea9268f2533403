"""One rank's graph as it is written: the collectives, the random numbers and the shapes in it.

A value of the parallel graph becomes a node of the rank's graph, `local.of(node)`, of the shape that the rank
holds. Ops that only a rank needs (a lookup in its shard of the vocabulary) are plain functions of tensors, in
`kernels`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from ..ir.annotations import choice_of, dims_of
from ..ir.axes import Dim, axes, find
from ..ir.layout import Split, Unfolding, carries, local_size, unfold
from ..ir.nodes import arguments
from ..ir.op_dims import Dims
from ..ir.shards import SplitDims, concrete
from ..kernels.collectives import gather_shards
from ..kernels.lookups import embedding_shard
from ..kernels.slices import take, take_unfolded
from .nested_graphs import broadcast_of

aten = torch.ops.aten
c10d = torch.ops._c10d_functional

# What makes a dense tensor of its own.
_PRODUCTS = (aten.linear.default, aten.mm.default, aten.bmm.default, embedding_shard)


@dataclass
class Rank:
    """One rank's graph as it is written, and what has been made of each node of the parallel graph.

    `draws`: whether it draws random numbers, as the first rank of each process does.
    """

    graph: Graph
    rank: int
    ranks: int
    group: str
    draws: bool
    made: dict[Node, Any] = field(default_factory=dict)

    def of(self, node: Node) -> Any:
        """The rank's node for a node of the parallel graph."""
        return self.made[node]

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """Add a call to the rank's graph."""
        return self.graph.call_function(target, args, kwargs)

    def args(self, node: Node) -> dict[str, Any]:
        """A node's arguments by name, its operands those of the rank."""
        named: dict[str, Any] = map_arg(arguments(node), self.of)
        return named


def split_of(node: Node) -> Split:
    """The split that an op is carried out in."""
    choice = choice_of(node)
    assert choice is not None
    return next(layout for layout in (*choice.operands, *choice.results) if isinstance(layout, Split))


# Collectives and conversions.


def _moved(node: Node) -> tuple[Node, Any]:
    """The value that a marker moves, and the layout that it moves it from or to."""
    return node.all_input_nodes[0], node.args[1]


def emit_reduce(local: Rank, node: Node) -> Node:
    """Add up the ranks' partial sums, which are dead afterwards: the sum takes their memory where it can."""
    value, partial = _moved(node)
    partial_sum = local.of(value)
    alone = len(value.users) == 1 and isinstance(partial_sum, Node) and _owns_memory(partial_sum)
    reduce = c10d.all_reduce_.default if alone else c10d.all_reduce.default
    if alone:
        partial_sum = (
            local.call(aten.contiguous.default, partial_sum) if not _dense(partial_sum) else partial_sum
        )
    return local.call(c10d.wait_tensor.default, local.call(reduce, partial_sum, partial.op, local.group))


def _owns_memory(node: Node) -> bool:
    """Whether a value was newly made by an op that never returns one of its inputs."""
    return _dense(node) or node.target is aten.add.Tensor


def _dense(node: Node) -> bool:
    return node.target in _PRODUCTS or getattr(node.target, "namespace", "") == "mkldnn"


def emit_gather(local: Rank, node: Node) -> Node:
    """Bring every rank's shard to every rank."""
    where, shape, unfolding = gathering(node)
    value = local.of(_moved(node)[0])
    return local.call(gather_shards, value, where, shape, local.rank, local.ranks, local.group, unfolding)


def gathering(node: Node) -> tuple[SplitDims, list[int], Unfolding]:
    """Which intervals of which dimensions each rank sends, the whole shape, and dimensions to take apart."""
    value, split = _moved(node)
    dims, unfolding = unfold(dims_of(value), split)
    shape = [size if isinstance(size := find(dim).size, int) else -1 for dim in dims]
    return concrete(dims, split).dims, shape, unfolding


def emit_shard(local: Rank, node: Node) -> Node:
    """A rank's shard of what it has whole."""
    value, split = _moved(node)
    dims, unfolding = unfold(dims_of(value), split)
    where = concrete(dims, split).dims
    if unfolding:
        return local.call(take_unfolded, local.of(value), where, local.rank, unfolding)
    return local.call(take, local.of(value), where, local.rank)


def emit_to_partial(local: Rank, node: Node) -> Node:
    """The value on rank 0, zeros on the others."""
    value = local.of(node.args[0])  # type: ignore[arg-type]
    return value if local.rank == 0 else local.call(aten.zeros_like.default, value)


def emit_random(local: Rank, node: Node) -> Any:
    """What the unsharded model would draw: rank 0 does, from the caller's generator, and tells the others."""
    target, args = broadcast_of(node, local.draws, local.group)
    return local.call(target, *map_arg(args, local.of))


# Shapes.


def emit_shape(local: Rank, dims: Dims, given: Sequence[Any], split: Split) -> list[Any]:
    """The local shape of a tensor: what was given, with the extents that a split makes smaller."""
    return [
        _emit_extent(local, dim, extent, split) if carries(dim, split) else _known(dim, extent)
        for dim, extent in zip(dims, given, strict=True)
    ]


def _known(dim: Dim, extent: Any) -> Any:
    """An extent that was left to be inferred, where it is known: an empty tensor tells nothing."""
    size = find(dim).size
    return size if extent == -1 and isinstance(size, int) else extent


def _emit_extent(local: Rank, dim: Dim, extent: Any, split: Split) -> Any:
    size, held = find(dim).size, local_size(dim, split, local.rank)
    if isinstance(held, int):
        return held
    inside = [axis for axis in split.axes if axis in axes(dim)]
    whole, box = math.prod(int(axis.size) for axis in inside), split.rank_intervals[local.rank]
    own = math.prod(box[axis][1] - box[axis][0] for axis in inside)
    if extent == -1:  # left to be inferred, which nothing can be from an empty tensor
        return extent if own else 0
    if isinstance(extent, int):  # a number that the size has come down to, which its expression does not show
        return extent // whole * own
    assert isinstance(extent, Node), f"a symbolic extent {size} that no node computes"
    return local.call(operator.mul, local.call(operator.floordiv, extent, whole), own)
