"""The lines of a dump: what one node of a parallel graph looks like in text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch.fx import Node

from ..formatting import bytes_text, dtype_text
from ..ir.annotations import (
    bound_of,
    choice_of,
    dims_of,
    has_dims,
    is_gathered_for_caller,
    layout_of,
    source_of,
)
from ..ir.axes import Concat, Dim, Size, axes, factors, find, segments, show
from ..ir.layout import Interval, Layout, Partial, Split, carries
from ..ir.nodes import arguments, bytes_of, is_getitem, is_tensor, is_view, size_of
from ..ir.op_dims import Bound
from ..ir.provenance import op_name
from ..ir.resharding import COLLECTIVES
from ..rules import is_random, rule_of
from ..rules.views import FULL
from ..torch_internals.fx import OpOverload
from .columns import Row
from .node_names import Names


class Lines:
    """Writes nodes of one graph, so that an axis, a symbol or a value has the same name wherever it occurs.

    Attributes:
        names: the names of the nodes.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._symbols: dict[sympy.Symbol, sympy.Symbol] = {}
        self._symbol = "s"
        self._letters: dict[Dim, str] = {}
        self.names = Names(nodes, self.size)
        self._name: Callable[[Node], str] = self.names.__getitem__

    @contextmanager
    def anew(
        self, name: Callable[[Node], str], symbol: str = "s"
    ) -> Iterator[dict[sympy.Symbol, sympy.Symbol]]:
        """Begin with the first letter and the first symbol, and other names, for as long as this lasts.

        Gives what stands for each symbol.
        """
        kept = self._letters, self._symbols, self._name, self._symbol
        self._letters, self._symbols, self._name, self._symbol = {}, {}, name, symbol
        try:
            yield self._symbols
        finally:
            self._letters, self._symbols, self._name, self._symbol = kept

    def input(self, node: Node) -> Row:
        """The line of an input."""
        source = source_of(node)
        comments: list[str] = []
        if has_dims(node):
            comments += [", ".join(self.structure(node))] if source.kind != "input" else []
            comments += _uneven(layout_of(node), dims_of(node))
        comments += ["state"] if source.kind == "state" else []
        return Row(self._name(node), self.type_of(node), "", tuple(filter(None, comments)))

    def structure(self, node: Node) -> list[str]:
        """What each dimension is made of; a symbolic one by its size alone."""
        extents = node.meta["val"].shape
        return [
            show([dim], self._letters)[0] if isinstance(find(dim).size, int) else self.size(extent)
            for dim, extent in zip(dims_of(node), extents, strict=True)
        ]

    def result(self, node: Node) -> Row:
        """The line of a result."""
        comments: tuple[str, ...] = ()
        if is_tensor(node) and is_gathered_for_caller(node):
            comments = (f"gathered for the caller, {bytes_text(bytes_of(node.meta['val']))}",)
        return Row(self._name(node), self.type_of(node), "", comments)

    def op(self, node: Node) -> Row:
        """The line of an op."""
        if node.op == "get_attr":
            return Row(self._name(node), self.type_of(node), "constant")
        if is_getitem(node):
            return Row(self._name(node), self.type_of(node), self._name(node))
        call = f"{op_name(node)}({', '.join(self._arguments(node))})"
        return Row(self._name(node), self.type_of(node), call, tuple(self._comments(node)))

    def _comments(self, node: Node) -> Iterator[str]:
        choice, bound = choice_of(node), bound_of(node)
        if node.target in COLLECTIVES:
            yield bytes_text(bytes_of(node.meta["val"]))
        elif choice is None or bound is None:
            return
        elif choice.kind == "pending":
            yield "partial sum"
        elif choice.kind == "split" and not is_view(node):
            split = next(
                layout for layout in (*choice.operands, *choice.results) if isinstance(layout, Split)
            )
            yield _role(bound, split) or f"split {' '.join(self._axes_of(split))}"
            yield from _uneven(split, [dim for dims in (*bound.operands, *bound.results) for dim in dims])
        elif choice.kind == "whole" and rule_of(node) is None:
            yield "whole: random" if is_random(node) else "whole: no rule"

    def axes_text(self, split: Split) -> str:
        """The axes of a split, with their sizes: d:2"""
        return ", ".join(show(split.axes, self._letters))

    def _axes_of(self, split: Split) -> list[str]:
        return [show([axis], self._letters)[0].partition(":")[0] for axis in split.axes]

    # Types.

    def type_of(self, node: Node) -> str:
        """A node's dtype and extents, and how they lie: f32[s0, 4096/2]"""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return (
                f"{len(value)} results"
                if isinstance(value, (tuple, list))
                else type(value).__name__.lower().removeprefix("sym")
            )
        layout = layout_of(node)
        extents = [self.size(extent) for extent in value.shape]
        if isinstance(layout, Split):
            extents = [self._extent(d, e, layout) for d, e in zip(dims_of(node), extents, strict=True)]
        mark = ("+" if layout.op == "sum" else f"+{layout.op}") if isinstance(layout, Partial) else ""
        return f"{dtype_text(value.dtype)}[{', '.join(extents)}]{mark}"

    def _extent(self, dim: Dim, extent: str, split: Split) -> str:
        """A divided dimension as 512/4; one of which only parts are divided by its parts, [64/2|32].

        By how much a split is divided is not known before the pass `divide`: 512/a, along an axis a.
        """
        if not carries(dim, split):
            return extent
        if not split.rank_intervals:
            return f"{extent}/{' '.join(self._axes_of(split))}"
        if not _mixed(dim, split):
            return f"{extent}/{len({_intervals([dim], box) for box in split.rank_intervals})}"
        is_concat = isinstance(find(dim).form, Concat)
        inside = segments(dim) if is_concat else factors(dim)
        parts = [self._extent(part, self.number(find(part).size), split) for part in inside]
        return f"[{'|'.join(parts)}]" if is_concat else f"({' '.join(parts)})"

    def size(self, extent: Any) -> str:
        """A size, with its symbols named s0, s1… in the order in which they occur."""
        return self.number(size_of(extent))

    def number(self, size: Size) -> str:
        """The same of a size that has been read."""
        if isinstance(size, int):
            return str(size)
        for symbol in sorted(size.free_symbols, key=str):
            self._symbols.setdefault(
                symbol, sympy.Symbol(f"{self._symbol}{len(self._symbols)}", integer=True, positive=True)
            )
        return str(size.xreplace(self._symbols))

    # Arguments.

    def _arguments(self, node: Node) -> Iterator[str]:
        if not isinstance(node.target, OpOverload):
            yield from (
                self._value(argument) for argument in node.args if not isinstance(argument, (Partial, Split))
            )
            return
        known = list(arguments(node))
        rule = rule_of(node)
        for name, argument in zip(known, node.args, strict=False):
            if rule is None or name != rule.shape:  # the type says it
                yield self._value(argument)
        for name, argument in node.kwargs.items():
            if not isinstance(argument, _UNSAID) and name not in ("device", "pin_memory"):
                yield f"{name}={self._value(argument)}"

    def _value(self, argument: Any) -> str:
        if isinstance(argument, Node):
            return self._name(argument)
        if isinstance(argument, (list, tuple)):
            return "[" + ", ".join(self._value(item) for item in argument) + "]"
        if isinstance(argument, torch.dtype):
            return dtype_text(argument)
        return "end" if argument == FULL else str(argument)


_UNSAID = (torch.device, torch.layout, torch.memory_format)


def _role(bound: Bound, split: Split) -> str | None:
    """Column or row parallel, for what multiplies two operands and sums, as in `m k, k n -> m n`."""
    summed = bound.products()
    if not summed:
        return None
    if any(carries(dim, split) for dim in summed):
        return "row, split k"
    return "column, split n" if carries(bound.results[0][-1], split) else None


def _mixed(dim: Dim, split: Split) -> bool:
    """Whether some of a dimension's parts are divided and others, laid beside them, are whole."""
    root = find(dim)
    if root.form is None:
        return False
    if isinstance(root.form, Concat):
        return any(not carries(part, split) or _mixed(part, split) for part in segments(root))
    return any(_mixed(part, split) for part in factors(root) if carries(part, split))


def _uneven(layout: Layout, dims: Sequence[Dim]) -> list[str]:
    """How many units of these dimensions each rank has, where that differs: 2+1."""
    if not isinstance(layout, Split):
        return []
    held = [_intervals(dims, box) for box in layout.rank_intervals]
    units = [math.prod(stop - start for start, stop in intervals) for intervals in held]
    return ["+".join(map(str, units))] if len(set(units)) > 1 else []


def _intervals(dims: Iterable[Dim], box: dict[Dim, Interval]) -> tuple[Interval, ...]:
    """What a rank has of the axes that occur in these dimensions."""
    return tuple(interval for axis, interval in box.items() if any(axis in axes(dim) for dim in dims))
