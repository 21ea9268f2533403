"""The sizes of a graph as numbers: of the whole, of the most loaded rank, or of one rank.

    sizes = Sizes(graph.nodes)
    sizes.elements(dims, layout, rank=3)       # of what rank 3 holds of a tensor

A size that varies has the value that it had when the graph was captured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import sympy
import torch
from torch.fx import Node

from ..ir.axes import Dim, Size, find
from ..ir.layout import Layout, Split, local_size
from ..ir.nodes import UNKNOWN, hint_of, size_of


class Sizes:
    """The sizes of one graph as numbers."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._nodes = list(nodes)
        self._numbers: dict[sympy.Expr, int] = {}

    @cached_property
    def hints(self) -> dict[sympy.Symbol, int]:
        """What each symbol in the sizes of the graph was when it was captured."""
        found: dict[sympy.Symbol, int] = {}
        for node in self._nodes:
            value = node.meta.get("val")
            for extent in value.shape if isinstance(value, torch.Tensor) else [value]:
                size = size_of(extent) if isinstance(extent, torch.SymInt) else 0
                if isinstance(size, sympy.Symbol):
                    found[size] = hint_of(extent)
        return found

    def number(self, size: Size) -> int:
        """A size as a number; a symbol that had no value then counts as `UNKNOWN`."""
        if isinstance(size, int):
            return size
        if size not in self._numbers:
            known = {symbol: self.hints.get(symbol, UNKNOWN) for symbol in size.free_symbols}
            self._numbers[size] = int(size.xreplace(known))
        return self._numbers[size]

    def extent(self, dim: Dim, layout: Layout, rank: int | None = None) -> int:
        """The extent of a dimension on a rank that holds a layout; the whole one for no rank."""
        if rank is None or not isinstance(layout, Split):
            return self.number(find(dim).size)
        return self.number(local_size(dim, layout, rank))

    def elements(self, dims: Sequence[Dim], layout: Layout, rank: int | None = None) -> int:
        """How many elements a rank holds of a tensor of these dimensions; all of them for no rank."""
        count = 1
        for dim in dims:
            count *= self.extent(dim, layout, rank)
        return count
