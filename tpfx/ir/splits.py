"""The splits that are considered for one graph: along the axes of what is kept from call to call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from torch.fx import Graph

from .annotations import dims_of, source_of
from .axes import Dim, Product, factors, find
from .layout import Split
from .nodes import is_tensor


class Splits:
    """The splits worth considering: along the axes of what is kept from call to call (weights, caches).

    Activations have other axes too (batch, sequence), but splitting along those would leave every weight
    whole.
    """

    def __init__(self, graph: Graph, ranks: int) -> None:
        self.ranks = ranks
        self._splits: dict[tuple[Dim, ...], Split] = {}
        self._by_axis: dict[Dim, list[Split]] = {}
        for node in graph.nodes:
            if (
                node.op == "placeholder"
                and is_tensor(node)
                and source_of(node).kind not in ("input", "tangent")
            ):
                for dim in dims_of(node):
                    self._add(dim)

    def _add(self, dim: Dim) -> None:
        for axis in _ordered_axes(dim):
            self.get((axis,))
        for outer, inner in _neighbours(find(dim)):
            if int(outer.size) < self.ranks:
                self.get((outer, inner))

    def get(self, key: tuple[Dim, ...]) -> Split:
        """The split along these axes; there is one object for each."""
        if key not in self._splits:
            split = self._splits[key] = Split(key)
            for axis in key:
                self._by_axis.setdefault(axis, []).append(split)
        return self._splits[key]

    def __iter__(self) -> Iterator[Split]:
        return iter(self._splits.values())

    def of(self, tensors: Iterable[Sequence[Dim]]) -> list[Split]:
        """The splits that concern any of these tensors, in a fixed order."""
        found: dict[Split, None] = {}
        for dims in tensors:
            for dim in dims:
                for axis in _ordered_axes(dim):
                    found.update(dict.fromkeys(self._by_axis.get(axis, ())))
        return list(found)


def _ordered_axes(dim: Dim) -> list[Dim]:
    root = find(dim)
    if root.form is None:
        return [root] if isinstance(root.size, int) and root.size > 1 else []
    return list(dict.fromkeys(axis for part in root.form.parts for axis in _ordered_axes(part)))


def _neighbours(root: Dim) -> Iterable[tuple[Dim, Dim]]:
    """Pairs of axes, one directly inside the other in a product."""
    if root.form is None:
        return
    for part in root.form.parts:
        yield from _neighbours(find(part))
    if isinstance(root.form, Product):
        inside = factors(root)
        for outer, inner in pairwise(inside):
            if all(part.form is None and isinstance(part.size, int) for part in (outer, inner)):
                yield outer, inner
