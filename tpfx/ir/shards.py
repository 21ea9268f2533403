"""A split of one tensor made concrete: which intervals of which dimensions each rank holds.

`Shards` is what a `ShardedTensor` remembers after the graph that made it is gone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from .axes import Concat, Dim, factors, find, segments
from .layout import (
    Interval,
    Split,
    Unfolding,
    carries,
)

Pieces = tuple[Interval, ...]
SplitDims = tuple[tuple[int, tuple[Pieces, ...]], ...]


@dataclass(frozen=True, slots=True)
class Shards:
    """A `Split` of one tensor, made concrete: `dims` has the intervals of each dimension by rank.

    Shards of several ranks may overlap (a KV head that several need). No dims: every rank holds all. With
    an `unfolding`, `dims` are those of the tensor with dimensions of a varying size taken apart: what a graph
    leaves to its backward part, which alone can use it.
    """

    dims: SplitDims = ()
    unfolding: Unfolding = ()

    def __bool__(self) -> bool:
        return bool(self.dims)


@functools.cache
def one_object(shards: Shards) -> Shards:
    """The same for all that are equal, which are then fast to compare."""
    return shards


def pieces(dim: Dim, split: Split, rank: int) -> Pieces:
    """The intervals of a dimension that a rank holds, in order, neighbours joined."""
    return join_neighbours(_pieces(find(dim), split, rank))


def _pieces(root: Dim, split: Split, rank: int) -> list[Interval]:
    assert isinstance(root.size, int), "a symbolic dimension has no fixed intervals"
    if root in split.axes:
        return [split.rank_intervals[rank][root]]
    if root.form is None or not carries(root, split):
        return [(0, root.size)]
    if isinstance(root.form, Concat):
        return _concat_pieces(segments(root), split, rank)
    major, *rest = factors(root)
    minor = [pieces(part, split, rank) for part in rest]
    intervals = _pieces(major, split, rank)
    for part, inner in zip(rest, minor, strict=True):
        assert isinstance(part.size, int)
        if inner == ((0, part.size),):
            intervals = [(a * part.size, b * part.size) for a, b in intervals]
        else:
            intervals = [
                (i * part.size + c, i * part.size + d)
                for a, b in intervals
                for i in range(a, b)
                for c, d in inner
            ]
    return intervals


def _concat_pieces(parts: Sequence[Dim], split: Split, rank: int) -> list[Interval]:
    start, intervals = 0, []
    for part in parts:
        assert isinstance(part.size, int)
        intervals += [(start + a, start + b) for a, b in _pieces(part, split, rank)]
        start += part.size
    return intervals


def join_neighbours(intervals: Sequence[Interval]) -> Pieces:
    """The same intervals, those that touch made one, and empty ones left out."""
    joined: list[Interval] = []
    for start, stop in intervals:
        if start == stop:
            continue
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], stop
        else:
            joined.append((start, stop))
    return tuple(joined)


def count_below(intervals: Pieces, offset: int) -> int:
    """How many of the indices that a rank holds lie before an offset of the whole dimension."""
    return sum(max(0, min(stop, offset) - start) for start, stop in intervals)


def minus(intervals: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """What of some intervals lies in none of the others."""
    left = list(intervals)
    for low, high in others:
        left = [(a, b) for x, y in left for a, b in ((x, min(y, low)), (max(x, high), y)) if a < b]
    return left


@functools.cache
def unseen(owned: tuple[Pieces, ...], rank: int) -> Pieces:
    """Which intervals of a rank's shard no earlier rank holds, counted within the shard."""
    earlier = [interval for pieces in owned[:rank] for interval in pieces]
    found: list[Interval] = []
    offset = 0
    for start, stop in owned[rank]:
        left = minus([(start, stop)], earlier)
        found += [(a - start + offset, b - start + offset) for a, b in left]
        offset += stop - start
    return join_neighbours(found)


def even_sizes(units: int, loads: Sequence[float]) -> list[int]:
    """Units for each rank, the remainder one each to those with the least load."""
    sizes = [units // len(loads)] * len(loads)
    for rank in sorted(range(len(loads)), key=lambda rank: (loads[rank], rank))[: units % len(loads)]:
        sizes[rank] += 1
    return sizes


def even_layout(shape: Sequence[int], loads: Sequence[float]) -> Shards:
    """One interval for each rank of the dimension that divides most evenly; a number lies on every rank.

    Args:
        shape: of the tensor.
        loads: bytes that each rank has already: those with the fewest get what is left over.
    """
    ranks = len(loads)
    dim = min(range(len(shape)), key=lambda at: -(-shape[at] // ranks) / max(1, shape[at]), default=None)
    if dim is None or 0 in shape or shape[dim] == 1:
        return Shards()
    ends = accumulate(even_sizes(shape[dim], loads), initial=0)
    owned: tuple[Pieces, ...] = tuple(((a, b),) if a < b else () for a, b in pairwise(ends))
    return Shards(((dim, owned),))


def concrete(dims: Sequence[Dim], split: Split) -> Shards:
    """A split of one tensor as intervals of its dimensions."""
    ranks = range(len(split.rank_intervals))
    return Shards(
        tuple(
            (index, tuple(pieces(dim, split, rank) for rank in ranks))
            for index, dim in enumerate(dims)
            if carries(dim, split)
        )
    )
