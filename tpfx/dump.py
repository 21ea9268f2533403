"""A parallel graph as text: one line an op, the same on every run.

      attn.q            f32[2, 128, 512/4]   = linear(ln1, attn.q.weight)      # column, split n
      attn.o            f32[2, 128, 512]+    = linear(view, attn.o.weight)     # row, split k
      attn.o.sum        f32[2, 128, 512]     = all_reduce(attn.o)              # 512 KiB

`512/4` is divided in 4 parts, `+` says that every rank has an addend. A weight shows what its dimensions are made of,
`(a:4 [b:8|b:8])`: an axis has the same letter wherever it occurs.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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
    layout_of,
    size_of,
    source_of,
    tensors_of,
)
from .axes import Concat, Dim, Size, find, segments, show
from .collectives import MESSAGES, all_gather, all_reduce, pend, shard
from .layout import Partial, Split, carries
from .ops import rule_for
from .pipeline import Parallel, gathered_for_caller
from .rules import arguments, is_tensor, parse
from .shapes import FULL

WIDEST = 72  # a comment stands further right only where its own line is longer


@dataclass(frozen=True)
class Row:
    """One line, by columns."""

    name: str
    type: str
    expression: str = ""
    comments: tuple[str, ...] = ()


def dump(parallel: Parallel) -> str:
    """The graph as text."""
    return _Text(parallel).render()


class _Text:
    """One graph being written."""

    def __init__(self, parallel: Parallel) -> None:
        self.parallel = parallel
        self.nodes: list[Node] = list(parallel.graph.nodes)
        self.symbols: dict[sympy.Symbol, sympy.Symbol] = {}
        self.axes: dict[Dim, str] = {}
        self.names = _Names(self.nodes, self.size)

    def render(self) -> str:
        """All of it: a summary, inputs, ops by layer, results."""
        blocks = ["\n".join(self._summary())]
        blocks.append(_block("inputs", [self._input(node) for node in self._listed_inputs()]))
        for heading, nodes in self._groups():
            blocks.append(_block(heading, [self._op(node) for node in nodes]))
        blocks.append(_block("results", [self._result(node) for node in self.parallel.outputs()]))
        return "\n\n".join(block for block in blocks if block)

    def _summary(self) -> Iterator[str]:
        parallel = self.parallel
        messages = parallel.collectives()
        counts = Counter(message.kind for message in messages)
        sums = {kind: sum(m.bytes for m in messages if m.kind == kind) for kind in counts}
        sent = ", ".join(f"{counts[kind]} {kind} ({_bytes(sums[kind])})" for kind in counts) or "no messages"
        proven = "proven cheapest" if parallel.solution.optimal else "not proven cheapest"
        yield f"# {parallel.phase} on {parallel.ranks} devices: {sent}; {proven}"
        if self.names.prefix:
            yield f"# names lie inside of {self.names.prefix}, where they can"
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
        heading, group = "", []
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
        comments += self._uneven(layout_of(node))
        comments += [source.kind] if source.kind in ("buffer", "state") else []
        return Row(self.names[node], self._type(node), "", tuple(filter(None, comments)))

    def _structure(self, node: Node) -> list[str]:
        """What each dimension is made of; a symbolic one by its size alone."""
        extents = node.meta["val"].shape
        return [
            show([dim], self.axes)[0] if isinstance(find(dim).size, int) else self.size(extent)
            for dim, extent in zip(dims_of(node), extents, strict=True)
        ]

    def _result(self, node: Node) -> Row:
        comments: tuple[str, ...] = ()
        if is_tensor(node) and gathered_for_caller(node):
            comments = (f"gathered for the caller, {_bytes(bytes_of(node.meta['val']))}",)
        return Row(self.names[node], self._type(node), "", comments)

    def _op(self, node: Node) -> Row:
        if node.op == "get_attr":
            return Row(self.names[node], self._type(node), "constant")
        if is_getitem(node):
            return Row(self.names[node], self._type(node), self.names[node])
        call = f"{_op_name(node)}({', '.join(self._arguments(node))})"
        return Row(self.names[node], self._type(node), call, tuple(self._comments(node)))

    def _comments(self, node: Node) -> Iterator[str]:
        choice = choice_of(node)
        if node.target in MESSAGES:
            yield _bytes(bytes_of(node.meta["val"]))
        elif choice is None:
            return
        elif choice.kind == "pending":
            yield "pending"
        elif choice.kind == "split" and not _is_view(node):
            split = next(layout for layout in (*choice.operands, *choice.results) if isinstance(layout, Split))
            yield _role(node, split) or f"split {' '.join(self._letters(split))}"
            yield from self._uneven(split)
        elif choice.kind == "whole" and rule_for(node.target) is None and tensors_of(node):
            yield "whole: no rule"

    def _letters(self, split: Split) -> list[str]:
        return [show([axis], self.axes)[0].partition(":")[0] for axis in split.axes]

    def _uneven(self, layout: Any) -> list[str]:
        """How many units each rank has, where they differ: 2+1."""
        if not isinstance(layout, Split) or not layout.boxes:
            return []
        units = [_product(stop - start for start, stop in box.values()) for box in layout.boxes]
        return ["+".join(map(str, units))] if len(set(units)) > 1 else []

    # Types.

    def _type(self, node: Node) -> str:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return f"{len(value)} results" if isinstance(value, (tuple, list)) else type(value).__name__.lower()
        layout = layout_of(node)
        extents = [self.size(extent) for extent in value.shape]
        if isinstance(layout, Split):
            extents = [self._extent(d, e, layout) for d, e in zip(dims_of(node), extents, strict=True)]
        pending = ("+" if layout.op == "sum" else f"+{layout.op}") if isinstance(layout, Partial) else ""
        return f"{_dtype(value.dtype)}[{', '.join(extents)}]{pending}"

    def _extent(self, dim: Dim, extent: str, split: Split) -> str:
        """A divided dimension as 512/4; a concatenation of which only parts are divided as [64/2|32]."""
        if not carries(dim, split):
            return extent
        parts = segments(dim)
        if isinstance(find(dim).form, Concat) and not all(carries(part, split) for part in parts):
            return "[" + "|".join(self._extent(part, str(find(part).size), split) for part in parts) + "]"
        boxes = {tuple(interval for axis, interval in box.items() if _has(dim, axis)) for box in split.boxes}
        return f"{extent}/{len(boxes)}"

    def size(self, extent: Any) -> str:
        """A size, with its symbols named s0, s1… in the order in which they occur."""
        size: Size = size_of(extent)
        if isinstance(size, int):
            return str(size)
        for symbol in sorted(size.free_symbols, key=str):
            self.symbols.setdefault(symbol, sympy.Symbol(f"s{len(self.symbols)}", integer=True, positive=True))
        return str(size.xreplace(self.symbols))

    # Arguments.

    def _arguments(self, node: Node) -> Iterator[str]:
        if not isinstance(node.target, torch._ops.OpOverload):
            yield from (self._value(argument) for argument in node.args if not isinstance(argument, (Partial, Split)))
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
            return _dtype(argument)
        return "end" if argument == FULL else str(argument)


_UNSAID = (torch.device, torch.layout, torch.memory_format)


class _Names:
    """The names of nodes, from the paths of their modules.

    Attributes:
        prefix: the modules that all others lie in, but for those directly in the root; names leave it out.
    """

    def __init__(self, nodes: Sequence[Node], size: Any) -> None:
        self._paths = {node: _module_path(node) for node in nodes}
        sources = [source_of(node) for node in nodes if node.op == "placeholder"]
        qualified = [source.name for source in sources if source.kind in ("parameter", "buffer")]
        self.prefix = _shared({*self._paths.values(), *(name.rpartition(".")[0] for name in qualified)} - {""})
        alone = Counter(self._paths[node] for node in nodes if node.op == "call_function" and not _is_attached(node))
        parents = {parent for path in alone for parent in _parents(path)}
        self._alone = {path for path, count in alone.items() if count == 1 and path not in parents}
        self._taken: Counter[str] = Counter()
        self._names: dict[Node, str] = {}
        for node in nodes:
            if node.op != "output":
                self._names[node] = self._name(node, size)

    def __getitem__(self, node: Node) -> str:
        return self._names[node]

    def path(self, node: Node) -> str:
        """The module that a node belongs to, without the prefix."""
        return self._short(self._paths[node])

    def _short(self, name: str) -> str:
        return "" if f"{self.prefix}.".startswith(f"{name}.") else name.removeprefix(f"{self.prefix}.")

    def _name(self, node: Node, size: Any) -> str:
        if node.op == "placeholder":
            value = node.meta.get("val")
            return size(value) if isinstance(value, torch.SymInt) else self._unique(self._input_name(node))
        if is_getitem(node):
            return f"{self._names[node.args[0]]}[{node.args[1]}]"  # type: ignore[index]
        if node.target in _SUFFIXES:
            partial = next((argument for argument in node.args if isinstance(argument, Partial)), None)
            return self._unique(f"{self._names[node.args[0]]}.{partial.op if partial else _SUFFIXES[node.target]}")  # type: ignore[index]
        path, op = self._paths[node], "constant" if node.op == "get_attr" else _op_name(node)
        short = self._short(path)
        if path in self._alone and short:
            return self._unique(short)
        return self._unique(f"{short}.{op}" if short else op)

    def _input_name(self, node: Node) -> str:
        source = source_of(node)
        if source.kind in ("parameter", "buffer"):
            return self._short(source.name)
        return re.sub(r"^l_(kwargs_|args_)?|_$", "", source.name)  # as Dynamo writes a local variable

    def _unique(self, name: str) -> str:
        count = self._taken[name]
        self._taken[name] += 1
        return self._unique(f"{name}_{count}") if count else name


_SUFFIXES = {all_reduce: "sum", all_gather: "whole", shard: "part", pend: "addend"}


def _is_attached(node: Node) -> bool:
    """Whether a node's name is that of the value that it takes or moves, with something added."""
    return is_getitem(node) or node.target in _SUFFIXES


def _module_path(node: Node) -> str:
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    path = re.sub(r"\._modules\['([^']*)'\]|\['([^']*)'\]|\[(\d+)\]", r".\1\2\3", path.removeprefix("L"))
    return re.sub(r"^\.(self|fn)(\.|$)", "", path).strip(".")


def _shared(paths: Iterable[str]) -> str:
    """The modules that all paths of more than one step begin with; none where what is left would be a number."""
    deep = [path.split(".") for path in sorted(paths) if "." in path]
    shared: list[str] = []
    while deep and len({path[0] for path in deep}) == 1 and not any(path[1].isdigit() for path in deep):
        shared.append(deep[0][0])
        deep = [path[1:] for path in deep if len(path) > 2]
    short = {path.removeprefix(f"{'.'.join(shared)}.") for path in paths}
    return ".".join(shared) if len(short) == len(set(paths)) else ""


def _parents(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _layer(path: str) -> str:
    """The path up to its first number: layers.0"""
    found = re.match(r"(.*?\.)?\d+(?=\.|$)", path)
    return found.group() if found else ""


def _op_name(node: Node) -> str:
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", str(node.target))
    rule = rule_for(node.target)
    return (rule and rule.lower) or node.target._schema.name.partition("::")[2].lstrip("_")


def _is_view(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target.is_view)


def _role(node: Node, split: Split) -> str | None:
    """Column or row parallel, for what multiplies two operands and sums: along which factor of its rule."""
    rule, bound = rule_for(node.target), bound_of(node)
    if rule is None or bound is None or not isinstance(rule.pattern, str):
        return None
    pattern = parse(rule.pattern)
    results = {name for term in pattern.results[0] for name in term.factors}
    counts = Counter(name for terms in pattern.operands for term in terms for name in term.factors)
    summed = [name for name, count in counts.items() if count > 1 and name not in results | pattern.whole]
    if not summed:
        return None
    if any(carries(dim, split) for dim in bound.contracted):
        return f"row, split {summed[0]}"
    last = pattern.results[0][-1].factors
    return f"column, split {last[0]}" if last and carries(bound.results[0][-1], split) else None


def _has(dim: Dim, axis: Dim) -> bool:
    return carries(dim, Split([axis]))


def _product(numbers: Iterable[int]) -> int:
    result = 1
    for number in numbers:
        result = operator.mul(result, number)
    return result


def _dtype(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    for long, short in (("bfloat", "bf"), ("float", "f"), ("complex", "c"), ("uint", "u"), ("int", "i")):
        name = name.replace(long, short)
    return name


def _bytes(size: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 2**power:
            return f"{size / 2**power:.4g} {unit}"
    return f"{size} B"


def _block(heading: str, rows: Sequence[Row]) -> str:
    """Rows in columns."""
    names = max((len(row.name) for row in rows), default=0)
    types = max((len(row.type) for row in rows), default=0)
    lines = [f"{row.name:{names}}  {row.type:{types}}  {'= ' * bool(row.expression)}{row.expression}" for row in rows]
    start = names + types + 4
    widths = [len(line.rstrip()) for line, row in zip(lines, rows, strict=True) if row.comments]
    end = min(max(widths, default=0), start + WIDEST)
    noted = [
        f"{line.rstrip():{end}}  # {', '.join(row.comments)}" if row.comments else line.rstrip()
        for line, row in zip(lines, rows, strict=True)
    ]
    return "\n".join([f"# {heading}", *noted] if heading else noted) if rows else ""
