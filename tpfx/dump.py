"""A parallel graph as text: one line an op, the same on every run.

      attn.q            f32[2, 128, 512/4]   = linear(ln1, attn.q.weight)      # column, split n
      attn.o            f32[2, 128, 512]+    = linear(view, attn.o.weight)     # row, split k
      attn.o.sum        f32[2, 128, 512]     = all_reduce(attn.o)              # 512 KiB

`512/4` is divided in 4 parts, `+` says that every rank has an addend. A weight shows what its dimensions are
made of, `(a:4 [b:8|b:8])`: an axis has the same letter wherever it occurs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sympy
import torch
from torch.fx import Node

from .annotations import (
    bound_of,
    bytes_of,
    choice_of,
    dims_of,
    hint_of,
    is_getitem,
    is_joined,
    layout_of,
    size_of,
    source_of,
)
from .axes import Concat, Dim, Size, axes, factors, find, same, segments, show
from .collectives import MESSAGES
from .columns import Row, block, bytes_text, dtype_text
from .layout import Interval, Layout, Partial, Split, carries
from .names import Names, op_name
from .ops import is_random, rule_for
from .pipeline import Parallel
from .rules import Bound, arguments, is_tensor
from .shapes import FULL


def dump(parallel: Parallel) -> str:
    """The graph as text."""
    return _Text(parallel).render()


def names_of(parallel: Parallel) -> Names:
    """The names under which the text lists the nodes."""
    return _Text(parallel).names


class _Text:
    """One graph being written."""

    def __init__(self, parallel: Parallel) -> None:
        self.parallel = parallel
        self.nodes: list[Node] = list(parallel.graph.nodes)
        self.symbols: dict[sympy.Symbol, sympy.Symbol] = {}
        self.letters: dict[Dim, str] = {}
        self.names = Names(self.nodes, self.size)

    def render(self) -> str:
        """All of it: a summary, inputs, ops by layer, results."""
        blocks = ["\n".join(self._summary())]
        blocks.append(block("inputs", [self._input(node) for node in self._listed_inputs()]))
        for heading, nodes in self._groups():
            blocks.append(block(heading, [self._op(node) for node in nodes]))
        blocks.append(block("results", [self._result(node) for node in self.parallel.outputs()]))
        return "\n\n".join(block for block in blocks if block)

    def _summary(self) -> Iterator[str]:
        parallel = self.parallel
        messages = parallel.collectives()
        counts = Counter(message.kind for message in messages)
        sums = {kind: sum(m.bytes for m in messages if m.kind == kind) for kind in counts}
        sent = (
            ", ".join(f"{counts[kind]} {kind} ({bytes_text(sums[kind])})" for kind in counts) or "no messages"
        )
        proven = "proven cheapest" if parallel.solution.optimal else "not proven cheapest"
        what = "forward and backward" if parallel.backward else "forward"
        yield f"# {what} on {parallel.ranks} devices: {sent or 'no messages'}; {proven}"
        if self.names.prefix:
            yield f'# names leave out "{self.names.prefix}."'
        for op, count in sorted(parallel.whole_ops.items()):
            yield f"# whole: no rule for {op}, {count} times"
        hints = self._hints()
        if hints:
            yield f"# sizes: {hints}"

    def _hints(self) -> str:
        found: dict[str, int] = {}
        for node in self.nodes:
            value = node.meta.get("val")
            if node.op == "placeholder" and isinstance(value, torch.SymInt):
                found.setdefault(self.size(value), hint_of(value))
        return ", ".join(f"{name} = {hint}" for name, hint in found.items())

    def _listed_inputs(self) -> list[Node]:
        return [node for node in self.nodes if node.op == "placeholder" and is_tensor(node)]

    def _groups(self) -> Iterator[tuple[str, list[Node]]]:
        """The ops in order, cut where another layer begins."""
        heading = ""
        group: list[Node] = []
        for node in self.nodes:
            if node.op in ("placeholder", "output"):
                continue
            layer = _layer(self.names.path(node))
            if group and layer != heading:
                yield heading, group
                group = []
            heading = layer
            group.append(node)
        if group:
            yield heading, group

    def _input(self, node: Node) -> Row:
        source = source_of(node)
        comments = [", ".join(self._structure(node))] if source.kind != "input" else []
        comments += _uneven(layout_of(node), dims_of(node))
        comments += ["state"] if source.kind == "state" else []
        return Row(self.names[node], self._type(node), "", tuple(filter(None, comments)))

    def _structure(self, node: Node) -> list[str]:
        """What each dimension is made of; a symbolic one by its size alone."""
        extents = node.meta["val"].shape
        return [
            show([dim], self.letters)[0] if isinstance(find(dim).size, int) else self.size(extent)
            for dim, extent in zip(dims_of(node), extents, strict=True)
        ]

    def _result(self, node: Node) -> Row:
        comments: tuple[str, ...] = ()
        if is_tensor(node) and is_joined(node):
            comments = (f"gathered for the caller, {bytes_text(bytes_of(node.meta['val']))}",)
        return Row(self.names[node], self._type(node), "", comments)

    def _op(self, node: Node) -> Row:
        if node.op == "get_attr":
            return Row(self.names[node], self._type(node), "constant")
        if is_getitem(node):
            return Row(self.names[node], self._type(node), self.names[node])
        call = f"{op_name(node)}({', '.join(self._arguments(node))})"
        return Row(self.names[node], self._type(node), call, tuple(self._comments(node)))

    def _comments(self, node: Node) -> Iterator[str]:
        choice, bound = choice_of(node), bound_of(node)
        if node.target in MESSAGES:
            yield bytes_text(bytes_of(node.meta["val"]))
        elif choice is None or bound is None:
            return
        elif choice.kind == "pending":
            yield "pending"
        elif choice.kind == "split" and not _is_view(node):
            split = next(
                layout for layout in (*choice.operands, *choice.results) if isinstance(layout, Split)
            )
            yield _role(bound, split) or f"split {' '.join(self._letters(split))}"
            yield from _uneven(split, [dim for dims in (*bound.operands, *bound.results) for dim in dims])
        elif choice.kind == "whole" and rule_for(node.target) is None:
            yield "whole: random" if is_random(node) else "whole: no rule"

    def _letters(self, split: Split) -> list[str]:
        return [show([axis], self.letters)[0].partition(":")[0] for axis in split.axes]

    # Types.

    def _type(self, node: Node) -> str:
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
        pending = ("+" if layout.op == "sum" else f"+{layout.op}") if isinstance(layout, Partial) else ""
        return f"{dtype_text(value.dtype)}[{', '.join(extents)}]{pending}"

    def _extent(self, dim: Dim, extent: str, split: Split) -> str:
        """A divided dimension as 512/4; one of which only parts are divided by its parts, [64/2|32]."""
        if not carries(dim, split):
            return extent
        if not _mixed(dim, split):
            return f"{extent}/{len({_intervals([dim], box) for box in split.boxes})}"
        is_concat = isinstance(find(dim).form, Concat)
        inside = segments(dim) if is_concat else factors(dim)
        parts = [self._extent(part, self._size(find(part).size), split) for part in inside]
        return f"[{'|'.join(parts)}]" if is_concat else f"({' '.join(parts)})"

    def size(self, extent: Any) -> str:
        """A size, with its symbols named s0, s1… in the order in which they occur."""
        return self._size(size_of(extent))

    def _size(self, size: Size) -> str:
        if isinstance(size, int):
            return str(size)
        for symbol in sorted(size.free_symbols, key=str):
            self.symbols.setdefault(
                symbol, sympy.Symbol(f"s{len(self.symbols)}", integer=True, positive=True)
            )
        return str(size.xreplace(self.symbols))

    # Arguments.

    def _arguments(self, node: Node) -> Iterator[str]:
        if not isinstance(node.target, torch._ops.OpOverload):
            yield from (
                self._value(argument) for argument in node.args if not isinstance(argument, (Partial, Split))
            )
            return
        known = list(arguments(node))
        rule = rule_for(node.target)
        for name, argument in zip(known, node.args, strict=False):
            if rule is None or name != rule.shape:  # the type says it
                yield self._value(argument)
        for name, argument in node.kwargs.items():
            if not isinstance(argument, _UNSAID) and name not in ("device", "pin_memory"):
                yield f"{name}={self._value(argument)}"

    def _value(self, argument: Any) -> str:
        if isinstance(argument, Node):
            return self.names[argument]
        if isinstance(argument, (list, tuple)):
            return "[" + ", ".join(self._value(item) for item in argument) + "]"
        if isinstance(argument, torch.dtype):
            return dtype_text(argument)
        return "end" if argument == FULL else str(argument)


_UNSAID = (torch.device, torch.layout, torch.memory_format)


def _layer(path: str) -> str:
    """The path up to its first number: layers.0"""
    found = re.match(r"(.*?\.)?\d+(?=\.|$)", path)
    return found.group() if found else ""


def _is_view(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target.is_view)


def _role(bound: Bound, split: Split) -> str | None:
    """Column or row parallel, for what multiplies two operands and sums, as in `m k, k n -> m n`."""
    summed = [dim for dim in bound.contracted if sum(_among(dim, dims) for dims in bound.operands) > 1]
    if not summed:
        return None
    if any(carries(dim, split) for dim in summed):
        return "row, split k"
    return "column, split n" if carries(bound.results[0][-1], split) else None


def _among(dim: Dim, dims: Sequence[Dim]) -> bool:
    return any(same(dim, other) for other in dims)


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
    held = [_intervals(dims, box) for box in layout.boxes]
    units = [math.prod(stop - start for start, stop in intervals) for intervals in held]
    return ["+".join(map(str, units))] if len(set(units)) > 1 else []


def _intervals(dims: Iterable[Dim], box: dict[Dim, Interval]) -> tuple[Interval, ...]:
    """What a rank has of the axes that occur in these dimensions."""
    return tuple(interval for axis, interval in box.items() if any(axis in axes(dim) for dim in dims))
