"""A parallel graph as text: one line an op, the same on every run.

      attn.q            f32[2, 128, 512/4]   = linear(ln1, attn.q.weight)      # column, split n
      attn.o            f32[2, 128, 512]+    = linear(view, attn.o.weight)     # row, split k
      attn.o.sum        f32[2, 128, 512]     = all_reduce(attn.o)              # 512 KiB

`512/4` is divided over 4 ranks, `+` says that each has a partial sum. A weight shows what its dimensions are
made of, `(a:4 [b:8|b:8])`: an axis has the same letter wherever it occurs. Of layers that are alike the
first is written, under the heading `layers.0–31 ×32`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeAlias

import torch
from torch.fx import Graph, Node

from ..formatting import bytes_text, dtype_text
from ..ir.annotations import dims_of, is_weight
from ..ir.axes import Dim, show
from ..ir.nodes import hint_of, is_tensor
from ..ir.parallel_graph import ParallelGraph
from ..ir.provenance import layer_of, source_line, stem_of
from .columns import Row, block
from .node_names import Names
from .node_text import Lines
from .repeated_layers import Layer, runs, span

LayerNodes: TypeAlias = tuple[str, list[Node]]  # a layer, and nodes of it


def dump_text(parallel: ParallelGraph, *, unfold: bool = False) -> str:
    """The graph as text; `unfold` writes layers that are alike one by one."""
    return Dump(parallel).text(unfold)


def stage_text(graph: Graph, *, unfold: bool = False) -> str:
    """A graph after any stage of the compiler, with what is known by then of dimensions and layouts."""
    return GraphText(graph).text(unfold)


def dump_json(parallel: ParallelGraph) -> dict[str, Any]:
    """The lines of the unfolded text, taken apart: summary, inputs, groups of ops, and results."""
    return Dump(parallel).json()


def names_of(parallel: ParallelGraph) -> Names:
    """The names under which the text lists the nodes."""
    return Lines(list(parallel.graph.nodes)).names


def structures(graph: Graph) -> str:
    """The weights of a graph after inference, and what their dimensions are made of."""
    nodes = list(graph.nodes)
    names, letters = Names(nodes, str), dict[Dim, str]()
    weights = [node for node in nodes if is_weight(node) and is_tensor(node)]
    rows = [
        Row(
            names[node],
            f"{dtype_text(node.meta['val'].dtype)}{list(map(int, node.meta['val'].shape))}",
            "",
            (", ".join(show(dims_of(node), letters)),),
        )
        for node in weights
    ]
    return block("weights", rows)


class GraphText:
    """One graph being written, at any stage."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: list[Node] = list(graph.nodes)
        self.lines = Lines(self.nodes)
        self.names = self.lines.names
        self._groups = list(self.groups())
        self._homes = {node: at for at, (_, nodes) in enumerate(self._groups) for node in nodes}

    def text(self, unfold: bool) -> str:
        """All of it: a summary, inputs, ops by layer, results."""
        lines, groups = self.lines, self._groups
        blocks = ["\n".join(f"# {line}" for line in self.summary())]
        blocks.append(block("inputs", self.listed(lines.input, self.inputs(), unfold)))
        for run in self._runs(lines.op, groups, unfold):
            first, last = groups[run[0]], groups[run[-1]]
            heading = f"{span(first[0], last[0])} ×{len(run)}" if len(run) > 1 else first[0]
            blocks.append(block(heading, [lines.op(node) for node in first[1]]))
        blocks.append(block("results", self.listed(lines.result, self.outputs(), unfold)))
        return "\n\n".join(block for block in blocks if block)

    def listed(self, write: Callable[[Node], Row], nodes: Sequence[Node], unfold: bool = False) -> list[Row]:
        """The lines of a list, in which neighbours of one layer belong together."""
        groups = [
            (layer, list(members)) for layer, members in groupby(nodes, lambda n: layer_of(self.names[n]))
        ]
        rows: list[Row] = []
        for run in self._runs(write, groups, unfold):
            (layer, members), last = groups[run[0]], groups[run[-1]][0]
            for row in map(write, members):
                name = span(layer, last) + row.name.removeprefix(layer) if len(run) > 1 else row.name
                rows.append(replace(row, name=name))
        return rows

    def _runs(self, write: Callable[[Node], Row], groups: Sequence[LayerNodes], unfold: bool) -> list[range]:
        if unfold:
            return [range(at, at + 1) for at in range(len(groups))]
        return runs([Layer(*stem_of(layer), self._likeness(write, layer, nodes)) for layer, nodes in groups])

    def _likeness(self, write: Callable[[Node], Row], layer: str, nodes: Sequence[Node]) -> tuple[Row, ...]:
        """A group's lines as they would be in any layer: its own letters, symbols and number left out."""
        if not layer:
            return ()
        inside = set(nodes)
        taken: dict[Node, str] = {}

        def name(node: Node) -> str:
            homes = {self._homes[user] for user in node.users if user in self._homes}
            if node not in inside and node in self._homes and len(homes) == 1:
                return taken.setdefault(node, f"<{len(taken)}>")  # what only this layer takes
            text = self.names[node]
            return text.removeprefix(layer) if f"{text}.".startswith(f"{layer}.") else text

        with self.lines.anew(name):
            return tuple(write(node) for node in nodes)

    def summary(self) -> Iterator[str]:
        """What there is to say of the whole."""
        yield from self._prefix()
        yield from self._sizes()

    def _prefix(self) -> Iterator[str]:
        if self.names.prefix:
            yield f'names leave out "{self.names.prefix}."'

    def _sizes(self) -> Iterator[str]:
        found: dict[str, int] = {}
        for node in self.nodes:
            value = node.meta.get("val")
            if node.op == "placeholder" and isinstance(value, torch.SymInt):
                found.setdefault(self.lines.size(value), hint_of(value))
        if found:
            yield f"sizes: {', '.join(f'{name} = {hint}' for name, hint in found.items())}"

    def inputs(self) -> list[Node]:
        """Inputs, but for sizes."""
        return [node for node in self.nodes if node.op == "placeholder" and is_tensor(node)]

    def outputs(self) -> list[Node]:
        """The nodes that the graph returns, each as often as it does."""
        returned: Sequence[Node] = self.nodes[-1].args[0]  # type: ignore[assignment]
        return [node for node in returned if isinstance(node, Node)]

    def groups(self) -> Iterator[tuple[str, list[Node]]]:
        """The ops in order, cut where another layer begins."""
        heading = ""
        group: list[Node] = []
        for node in self.nodes:
            if node.op in ("placeholder", "output"):
                continue
            layer = layer_of(self.names.path(node))
            if group and layer != heading:
                yield heading, group
                group = []
            heading = layer
            group.append(node)
        if group:
            yield heading, group


class Dump(GraphText):
    """One planned graph being written."""

    def __init__(self, parallel: ParallelGraph) -> None:
        super().__init__(parallel.graph)
        self.parallel = parallel

    def json(self) -> dict[str, Any]:
        """The unfolded lines, taken apart."""
        lines = self.lines
        return {
            "summary": list(self.summary()),
            "inputs": _taken_apart(lines.input, self.inputs()),
            "groups": [
                {"name": heading, "ops": _taken_apart(lines.op, nodes)} for heading, nodes in self.groups()
            ],
            "results": _taken_apart(lines.result, self.outputs()),
        }

    def summary(self) -> Iterator[str]:
        """What there is to say of the whole: its collectives, names left out, ops that run whole, sizes."""
        parallel = self.parallel
        collectives = parallel.collectives()
        counts = Counter(one.kind for one in collectives)
        sums = {kind: sum(one.bytes for one in collectives if one.kind == kind) for kind in counts}
        sent = ", ".join(f"{counts[kind]} {kind} ({bytes_text(sums[kind])})" for kind in counts)
        proven = "proven cheapest" if parallel.solution.optimal else "not proven cheapest"
        what = "forward and backward" if parallel.backward else "forward"
        yield f"{what} on {parallel.ranks} devices: {sent or 'no collectives'}; {proven}"
        yield from self._prefix()
        for op, count in sorted(parallel.whole_ops.items()):
            yield f"whole: no rule for {op}, {count} times"
        yield from self._sizes()


def _taken_apart(write: Callable[[Node], Row], nodes: Sequence[Node]) -> list[dict[str, Any]]:
    found = []
    for node in nodes:
        row = write(node)
        line = {"name": row.name, "type": row.type, "op": row.expression, "comments": list(row.comments)}
        found.append({**line, "source": source_line(node)})
    return found
