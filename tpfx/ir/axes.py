"""What the dimensions of tensors are made of, found by unification.

A dimension is an axis, a product of dimensions (major first), or a concatenation of dimensions. Ops say which
dimensions are the same; saying so merges them and refines their structure, wherever else they occur:

>>> packed, heads, width = Dim(192), Dim(4), Dim(16)
>>> unify(packed, concat([product([heads, width])] * 3))
True
>>> str(packed)
'[(a:4 b:16)|(a:4 b:16)|(a:4 b:16)]'

Everything that unification deduces is true of the ops that it was told about, so a deduction that fails
half-way leaves only true facts behind: the op that asked for it treats its dimensions as unknown and needs
them whole.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import sympy

Size: TypeAlias = int | sympy.Expr


@dataclass(frozen=True, slots=True)
class Product:
    """Row-major product, the slowest varying part first."""

    parts: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """Parts laid one after the other."""

    parts: tuple[Dim, ...]


class Dim:
    """One dimension, or a part of one: a node of a union-find forest whose root carries the structure.

    Args:
        size: its extent; an `int`, or a sympy expression where it is symbolic.
        form: `None` for an axis (nothing is known of its inside yet), a `Product`, or a `Concat`.
    """

    __slots__ = ("form", "parent", "size")

    def __init__(self, size: Size, form: Product | Concat | None = None) -> None:
        self.size = size
        self.form = form
        self.parent: Dim | None = None

    def __str__(self) -> str:
        return show([self])[0]


def find(dim: Dim) -> Dim:
    """The representative of everything that is known to be the same as `dim`."""
    root = dim
    while root.parent is not None:
        root = root.parent
    while dim.parent is not None:
        dim.parent, dim = root, dim.parent
    return root


def same(left: Dim, right: Dim) -> bool:
    """Whether two dimensions are known to be one."""
    left, right = find(left), find(right)
    return left is right or (left.size == 1 and right.size == 1)


def product(parts: Iterable[Dim], size: Size | None = None) -> Dim:
    """The dimension that `view` makes of several, major first; its size, where it is known in other terms."""
    factors = [part for part in map(find, parts) if part.size != 1]
    if not factors:
        return Dim(1)
    if len(factors) == 1:
        return factors[0]
    if size is None:
        size = 1
        for factor in factors:
            size = size * factor.size
    return Dim(size, Product(tuple(factors)))


def concat(parts: Iterable[Dim]) -> Dim:
    """The dimension that `cat` makes of several."""
    pieces = [part for part in map(find, parts) if part.size != 0]
    if len(pieces) == 1:
        return pieces[0]
    size: Size = 0
    for piece in pieces:
        size = size + piece.size
    return Dim(size, Concat(tuple(pieces)) if pieces else None)


def factors(dim: Dim) -> list[Dim]:
    """The parts of a product, nested products opened; `[dim]` for anything else."""
    root = find(dim)
    if not isinstance(root.form, Product):
        return [] if root.size == 1 else [root]
    return [factor for part in root.form.parts for factor in factors(part)]


def segments(dim: Dim) -> list[Dim]:
    """The parts of a concatenation, nested ones opened; `[dim]` for anything else."""
    root = find(dim)
    if not isinstance(root.form, Concat):
        return [root]
    return [segment for part in root.form.parts for segment in segments(part)]


def unify(left: Dim, right: Dim) -> bool:
    """Make two dimensions one; False where their structures cannot be brought together."""
    left, right = find(left), find(right)
    if left is right:
        return True
    if left.size != right.size:
        return False
    if left.size == 1:
        return True
    if left.form is not None and right.form is not None and not _align(left, right):
        return False
    left, right = find(left), find(right)
    if left is not right:
        # Equal sizes rule out that one lies inside the other: parts are smaller than their whole.
        loser, winner = (left, right) if left.form is None else (right, left)
        loser.parent = winner
    return True


def _align(left: Dim, right: Dim) -> bool:
    if isinstance(left.form, Product) and isinstance(right.form, Product):
        return _align_products(factors(left), factors(right))
    return _align_concats(segments(left), segments(right))


def _align_products(left: list[Dim], right: list[Dim]) -> bool:
    """Match factors from the minor end, dividing the larger of two by the smaller."""
    while left and right:
        x, y = left.pop(), right.pop()
        if isinstance(find(x).form, Product) or isinstance(find(y).form, Product):
            left.extend(factors(x))  # refined by an earlier step of this loop
            right.extend(factors(y))
            continue
        if x.size == y.size:
            if not unify(x, y):
                return False
        elif (outer := quotient(x.size, y.size)) is not None:
            left.append(Dim(outer))
            if not unify(x, product([left[-1], y])):
                return False
        elif (outer := quotient(y.size, x.size)) is not None:
            right.append(Dim(outer))
            if not unify(y, product([right[-1], x])):
                return False
        else:
            return False
    return not left and not right


def _align_concats(left: list[Dim], right: list[Dim]) -> bool:
    """Match segments from the start, cutting the longer of two at the end of the shorter."""
    left.reverse()
    right.reverse()
    while left and right:
        x, y = left.pop(), right.pop()
        if x.size == y.size:
            if not unify(x, y):
                return False
            continue
        if not isinstance(x.size, int) or not isinstance(y.size, int):
            return False
        short, long, rest = (x, y, right) if x.size < y.size else (y, x, left)
        halves = cut(long, int(short.size))
        if halves is None or not unify(short, halves[0]):
            return False
        rest.append(halves[1])
    return not left and not right


def cut(dim: Dim, at: int) -> tuple[Dim, Dim] | None:
    """Split a dimension in two at an offset, 0 < at < size; None where the structure does not allow it."""
    root = find(dim)
    if not isinstance(root.size, int):
        return None
    if root.form is None:
        halves = Dim(at), Dim(root.size - at)
        root.form = Concat(halves)
        return halves
    if isinstance(root.form, Concat):
        return _cut_concat(segments(root), at)
    major, *minor = factors(root)
    inner = product(minor)
    assert isinstance(inner.size, int)
    if at % inner.size:
        return None
    outer = cut(major, at // inner.size)
    return outer and (product([outer[0], inner]), product([outer[1], inner]))


def _cut_concat(parts: Sequence[Dim], at: int) -> tuple[Dim, Dim] | None:
    start = 0
    for index, part in enumerate(parts):
        assert isinstance(part.size, int)
        if start == at:
            return concat(parts[:index]), concat(parts[index:])
        if at < start + part.size:
            halves = cut(part, at - start)
            return halves and (concat([*parts[:index], halves[0]]), concat([halves[1], *parts[index + 1 :]]))
        start += part.size
    raise AssertionError(f"cut at {at} of a dimension of {start}")


def slice_of(dim: Dim, start: int, stop: int) -> Dim | None:
    """The part of a dimension from `start` to `stop`; None where the structure does not allow it."""
    size = find(dim).size
    if start > 0:
        halves = cut(dim, start) if start < stop else None
        return halves and slice_of(halves[1], 0, stop - start)
    if stop == size:
        return find(dim)
    if stop == 0:
        return Dim(0)
    halves = cut(dim, stop)
    return halves and halves[0]


def has_intervals(dim: Dim) -> bool:
    """Whether a rank's part of a dimension is intervals of numbers: one of a size that varies has none."""
    return isinstance(find(dim).size, int)


def quotient(size: Size, divisor: Size) -> Size | None:
    """`size / divisor` where the division is provably exact, else None."""
    if isinstance(size, int) and isinstance(divisor, int):
        return size // divisor if divisor and size % divisor == 0 else None
    if size == 0 or divisor == 0:
        return None
    ratio = sympy.sympify(size) / divisor
    exact = ratio.is_integer and (not ratio.is_Rational or ratio.is_Integer)
    return (int(ratio) if ratio.is_Integer else ratio) if exact else None


def axes(dim: Dim) -> frozenset[Dim]:
    """The axes that occur anywhere in a dimension (symbolic ones and those of size 1 left out)."""
    return frozenset(_axes(find(dim)))


def _axes(root: Dim) -> Iterator[Dim]:
    if root.form is not None:
        for part in root.form.parts:
            yield from _axes(find(part))
    elif isinstance(root.size, int) and root.size > 1:
        yield root


def occurrences(dim: Dim, axis: Dim) -> tuple[int, int]:
    """How often an axis occurs along one index of a dimension: (fewest, most) over concatenated parts."""
    root = find(dim)
    if root is axis:
        return 1, 1
    if root.form is None:
        return 0, 0
    counts = [occurrences(part, axis) for part in root.form.parts]
    if isinstance(root.form, Product):
        return sum(low for low, _ in counts), sum(high for _, high in counts)
    return min(low for low, _ in counts), max(high for _, high in counts)


def show(dims: Sequence[Dim], names: dict[Dim, str] | None = None) -> list[str]:
    """Dimensions as text, `[(a:4 b:16)|(c:2 b)]`: an axis has the same letter wherever it occurs."""
    names = {} if names is None else names
    return [_show(find(dim), names) for dim in dims]


def _show(root: Dim, names: dict[Dim, str]) -> str:
    if isinstance(root.form, Product):
        return "(" + " ".join(_show(find(part), names) for part in factors(root)) + ")"
    if isinstance(root.form, Concat):
        return "[" + "|".join(_show(find(part), names) for part in segments(root)) + "]"
    if root.size == 1:
        return "1"
    if root not in names:
        names[root] = _letter(len(names))
    return f"{names[root]}:{root.size}"


def _letter(index: int) -> str:
    letters = string.ascii_lowercase
    return letters[index] if index < 26 else f"{letters[index % 26]}{index // 26}"
