"""What a rank holds of a value: all of it, a shard along an axis, or a partial sum of it.

`Replicate`, `Split` and `Partial` are the layouts that passes reason about; a `Split` is made of axes, so one
object describes every tensor that carries them. `Shards` is the same thing made concrete for one tensor, in
intervals of its dimensions: what a `ShardedTensor` remembers after the graph that made it is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .axes import Concat, Dim, Product, Size, axes, factors, find, occurrences, show

Interval = tuple[int, int]  # start and stop of consecutive indices
Unfolding = tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Replicate:
    """Every rank holds the whole value."""


@dataclass(frozen=True, slots=True)
class Partial:
    """Every rank holds a partial sum of the value, as large as the value; `op` joins them."""

    op: str = "sum"


class Split:
    """Axes divided among ranks: rank r holds `rank_intervals[r][axis]`, an interval of each axis.

    Usually one axis. Where there are more ranks than units of it, the axis inside it takes part: with 2 KV
    heads, each serving 4 query heads, on 4 ranks, rank 1 holds KV head 0 and the latter 2 of its query heads.
    """

    __slots__ = ("axes", "rank_intervals")

    def __init__(self, axes: Sequence[Dim]) -> None:
        self.axes = tuple(axes)
        self.rank_intervals: tuple[dict[Dim, Interval], ...] = ()

    def __repr__(self) -> str:
        return f"Split({', '.join(map(repr, show(self.axes)))})"  # a Python expression: graphs are printed

    @property
    def units(self) -> int:
        """How many pieces the axes allow."""
        count = 1
        for axis in self.axes:
            assert isinstance(axis.size, int)
            count *= axis.size
        return count

    def share(self, ranks: int) -> float:
        """The part that the most loaded of the ranks holds."""
        return -(-self.units // ranks) / self.units

    def mean_share(self, dims: Sequence[Dim], ranks: int) -> float:
        """The part of a tensor that a rank holds on average: more than 1/ranks where ranks share one."""
        carried = 1
        for axis in self.axes:
            if any(axis in axes(dim) for dim in dims):
                assert isinstance(axis.size, int)
                carried *= axis.size
        return max(1 / ranks, 1 / carried)

    def fits(self, sizes: Sequence[int]) -> bool:
        """Whether `divide` can: all units are given out, and no rank gets parts of two outer ones."""
        inner = self.units // int(self.axes[0].size)
        ends = [sum(sizes[:rank]) for rank in range(len(sizes) + 1)]
        whole = all(
            size == 0 or start % inner == size % inner == 0 or start % inner + size <= inner
            for start, size in zip(ends, sizes, strict=False)
        )
        return ends[-1] == self.units and whole

    def divide(self, sizes: Sequence[int]) -> None:
        """Give rank r the next `sizes[r]` units; with several axes none may have parts of two outer ones."""
        assert self.fits(sizes), f"{self.units} units cannot be divided as {list(sizes)}"
        inner = self.units // int(self.axes[0].size)
        start, intervals = 0, []
        for size in sizes:
            intervals.append(self._intervals(start, start + size, inner))
            start += size
        self.rank_intervals = tuple(intervals)

    def _intervals(self, start: int, stop: int, inner: int) -> dict[Dim, Interval]:
        outer, *rest = self.axes
        if not rest:
            return {outer: (start, stop)}
        if start % inner == 0 and stop % inner == 0 and stop > start:
            return {outer: (start // inner, stop // inner)} | {axis: (0, int(axis.size)) for axis in rest}
        first = min(start // inner, int(outer.size) - 1)
        return {outer: (first, first + 1), rest[0]: (start - first * inner, stop - first * inner)}


Layout = Replicate | Partial | Split


def carries(dim: Dim, split: Split) -> bool:
    """Whether a dimension has any of the axes of a split in it."""
    root = find(dim)
    if root.form is None:  # the same, for the most frequent case: planning asks this most
        return root in split.axes and isinstance(root.size, int) and root.size > 1
    return not axes(dim).isdisjoint(split.axes)


def splittable(dims: Sequence[Dim], split: Split) -> bool:
    """Whether a tensor of these dimensions can be held in a split: no axis runs through it twice."""
    if any(sum(occurrences(dim, axis)[1] for dim in dims) > 1 for axis in split.axes):
        return False
    return all(_unfoldable(dim, split) for dim in dims if not isinstance(find(dim).size, int))


def _unfoldable(dim: Dim, split: Split) -> bool:
    """Whether a symbolic dimension is a product of numbers and one symbol, which a split leaves alone."""
    symbolic = [factor for factor in factors(dim) if not isinstance(factor.size, int)]
    return not carries(dim, split) or (len(symbolic) == 1 and not carries(symbolic[0], split))


def unfold(dims: Sequence[Dim], split: Split) -> tuple[list[Dim], Unfolding]:
    """Dimensions of which a split divides only numbers: a symbolic one that it divides is taken apart.

    Returns the dimensions, and which of the given ones to unflatten into which sizes, last first.
    """
    flat: list[Dim] = []
    unfolding: list[tuple[int, tuple[int, ...]]] = []
    for index, dim in enumerate(dims):
        if isinstance(find(dim).size, int) or not carries(dim, split):
            flat.append(dim)
        else:
            flat += factors(dim)
            sizes = tuple(size if isinstance(size := factor.size, int) else -1 for factor in factors(dim))
            unfolding.insert(0, (index, sizes))
    return flat, tuple(unfolding)


def partitions(dims: Sequence[Dim], split: Split) -> bool:
    """Whether every index of these dimensions, taken together, lies on exactly one rank."""
    return all(sum(occurrences(dim, axis)[0] for dim in dims) == 1 for axis in split.axes)


def local_size(dim: Dim, split: Split, rank: int) -> Size:
    """The extent of a dimension on a rank."""
    root = find(dim)
    if root in split.axes:
        start, stop = split.rank_intervals[rank][root]
        return stop - start
    if isinstance(root.form, Product):
        size: Size = 1
        for part in root.form.parts:
            size = size * local_size(part, split, rank)
        return size
    if isinstance(root.form, Concat):
        total: Size = 0
        for part in root.form.parts:
            total = total + local_size(part, split, rank)
        return total
    return root.size
