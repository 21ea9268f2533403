"""Which indices of each dimension ranks own, followed from one tensor of a bound rule to the others.

    owned = OwnedAxes()
    owned.split(dim, (((0, 2),), ((2, 4),)))     # of a dimension of 4, rank 0 owns the first half
    owned.of(product([dim, Dim(3)]))             # (((0, 6),), ((6, 12),)), of the one that a view makes

A graph splits axes at one place for each rank, and chooses where; an eager op takes a placement as it is,
of several intervals a rank, and asks whether the results can be told from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from ..ir.axes import Concat, Dim, Product, factors, find, occurrences, segments
from ..ir.op_dims import Dims
from ..ir.shards import Pieces, SplitDims, join_neighbours

Owned = tuple[Pieces, ...]  # the intervals of each rank


def leaves(dim: Dim) -> Iterator[Dim]:
    """The axes that a dimension is made of, those of size 1 too."""
    root = find(dim)
    if root.form is None:
        yield root
    else:
        for part in root.form.parts:
            yield from leaves(part)


class OwnedAxes:
    """What ranks own of the axes that are split; all other axes are whole on every rank."""

    def __init__(self) -> None:
        self.axes: dict[Dim, Owned] = {}

    def split(self, dim: Dim, owned: Owned) -> bool:
        """Take over what ranks own of a dimension; False where its axes cannot say so."""
        root = find(dim)
        if isinstance(root.form, Concat):
            return self._split_segments(segments(root), owned)
        if isinstance(root.form, Product):
            return self._split_factors(factors(root), owned)
        return self.axes.setdefault(root, owned) == owned

    def _split_segments(self, parts: Sequence[Dim], owned: Owned) -> bool:
        ends = [0]
        for part in parts:
            ends.append(ends[-1] + _extent(part))
        ranges = zip(parts, pairwise(ends), strict=True)
        return all(self.split(part, clipped(owned, start, stop)) for part, (start, stop) in ranges)

    def _split_factors(self, parts: Sequence[Dim], owned: Owned) -> bool:
        """Only whole indices of the major factor can be owned."""
        major, inside = parts[0], 1
        for part in parts[1:]:
            inside *= _extent(part)
        if any(end % inside for intervals in owned for interval in intervals for end in interval):
            return False
        return self.split(major, tuple(tuple((a // inside, b // inside) for a, b in own) for own in owned))

    def touches(self, dims: Dims) -> bool:
        """Whether any of these dimensions has a split axis in it."""
        return any(leaf in self.axes for dim in dims for leaf in leaves(dim))

    def once(self, dims: Dims) -> bool:
        """Whether each index of a tensor of these dimensions is owned by what its split axes say."""
        found = {leaf for dim in dims for leaf in leaves(dim) if leaf in self.axes}
        return all(sum(occurrences(dim, leaf)[1] for dim in dims) == 1 for leaf in found)

    def placement(self, dims: Dims) -> SplitDims | None:
        """How a tensor of these dimensions lies; None where a part of one is split, and another is not."""
        made = []
        for at, dim in enumerate(dims):
            if self.touches([dim]):
                owned = self.of(dim)
                if owned is None:
                    return None
                made.append((at, owned))
        return tuple(made)

    def of(self, dim: Dim) -> Owned | None:
        """What ranks own of a dimension; None where that cannot be said."""
        root = find(dim)
        if root in self.axes:
            return self.axes[root]
        if isinstance(root.form, Concat):
            return self._of_segments(segments(root))
        if isinstance(root.form, Product):
            return self._of_factors(factors(root))
        return None

    def _of_segments(self, parts: Sequence[Dim]) -> Owned | None:
        start, ranks = 0, None
        for part in parts:
            owned = self.of(part)
            if owned is None:
                return None
            moved = [[(start + a, start + b) for a, b in own] for own in owned]
            ranks = (
                moved if ranks is None else [left + right for left, right in zip(ranks, moved, strict=True)]
            )
            start += _extent(part)
        return None if ranks is None else tuple(join_neighbours(own) for own in ranks)

    def _of_factors(self, parts: Sequence[Dim]) -> Owned | None:
        """Row-major: for each owned index of the major factor, what is owned of those inside it."""
        count = next(len(owned) for owned in self.axes.values())
        ranks: list[Pieces] = [((0, 1),)] * count
        for part in parts:
            if not self.touches([part]):
                owned: Owned | None = (((0, _extent(part)),),) * count
            else:
                owned = self.of(part)
            if owned is None:
                return None
            ranks = [_inside(own, inner, _extent(part)) for own, inner in zip(ranks, owned, strict=True)]
        return tuple(ranks)


def _extent(dim: Dim) -> int:
    size = find(dim).size
    assert isinstance(size, int), "eager tensors have sizes that are numbers"
    return size


def _inside(major: Pieces, minor: Pieces, size: int) -> Pieces:
    if minor == ((0, size),):
        return tuple((a * size, b * size) for a, b in major)
    return join_neighbours(
        [(i * size + c, i * size + d) for a, b in major for i in range(a, b) for c, d in minor]
    )


def clipped(owned: Owned, start: int, stop: int) -> Owned:
    """What ranks own of a range of a dimension, counted from its start."""
    return tuple(
        tuple((max(a, start) - start, min(b, stop) - start) for a, b in own if a < stop and b > start)
        for own in owned
    )
