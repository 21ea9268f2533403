"""Recognise, in a new graph, the shards that an earlier graph gave a tensor.

A tensor keeps its shards for life, as intervals of its dimensions. In each graph that uses it, inference
finds its axes anew; here the two are brought together: the axis, and its division among the ranks, that give
these intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Graph, Node

from ..ir.annotations import dims_of, source_of
from ..ir.axes import Dim
from ..ir.layout import Layout, Replicate, Split, carries, local_size, splittable
from ..ir.nodes import is_tensor
from ..ir.shards import Shards, concrete
from ..ir.splits import Splits


def match_pinned(graph: Graph, splits: Splits) -> None:
    """Fix the division of every split that a pinned input already shows, weights before caches."""
    pinned = [
        node
        for node in graph.nodes
        if node.op == "placeholder" and is_tensor(node) and source_of(node).pinned
    ]
    for node in sorted(pinned, key=lambda node: source_of(node).kind != "parameter"):
        dims = dims_of(node)
        shards = source_of(node).pinned
        assert shards is not None
        for split in splits.of([dims]):
            if not split.rank_intervals and all(
                any(carries(d, Split([axis])) for d in dims) for axis in split.axes
            ):
                _divide_as(split, dims, shards, splits.ranks)


def pinned_layout(node: Node, splits: Splits) -> Layout | None:
    """The layout of an input that has one already; None where it may be chosen.

    Shards that no division of this graph gives are gathered on entry: the layout is `Replicate`.
    """
    shards = source_of(node).pinned
    if shards is None:
        return None
    dims = dims_of(node)
    for split in splits.of([dims]):
        if split.rank_intervals and splittable(dims, split) and concrete(dims, split) == shards:
            return split
    return Replicate()


def _divide_as(split: Split, dims: Sequence[Dim], shards: Shards, ranks: int) -> bool:
    """Divide a split such that a tensor gets these shards; leaves it undivided where that cannot be."""
    for index, intervals in shards.dims:
        if not carries(dims[index], split):
            return False
        sizes = _units(split, dims[index], [sum(b - a for a, b in own) for own in intervals], ranks)
        if sizes is not None and split.fits(sizes):
            split.divide(sizes)
            if concrete(dims, split) == shards:
                return True
            split.rank_intervals = ()
    return False


def _units(split: Split, dim: Dim, lengths: Sequence[int], ranks: int) -> list[int] | None:
    """How many units each rank has, from the length that it holds of a dimension."""
    probe = Split(split.axes)
    probe.rank_intervals = tuple({axis: (0, 1 if count else 0) for axis in split.axes} for count in (0, 1))
    none, one = (local_size(dim, probe, rank) for rank in (0, 1))
    assert isinstance(none, int) and isinstance(one, int)
    if one == none or any((length - none) % (one - none) for length in lengths):
        return None
    sizes = [(length - none) // (one - none) for length in lengths]
    return sizes if len(sizes) == ranks and sum(sizes) == split.units and min(sizes) >= 0 else None
