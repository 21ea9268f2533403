"""What is wrong with a split graph, and where in the model.

value: layers.0.mlp.down_proj (model.layers.0.mlp.down_proj, modeling_llama.py:178)
    on rank 1: off by 0.31 at [0, 3, 7]: 0.52, unsharded 0.21; the largest magnitude is 0.4
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from ..dump.text import names_of
from ..ir.parallel_graph import ParallelGraph
from ..ir.provenance import module_path, source_line


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: "collective" (missing, twice, in another order, of something else), "draw" (a rank draws
            random numbers of its own), "operand" (a rank takes another value than planned), "shape" (another
            one than the layout says), "value" (other numbers than unsharded), "rewrite" (the passes changed
            what the model computes), or "error" (a rank raised).
        node: its name, as `tpfx dump` prints it.
        module: the path of the module that it belongs to; empty for the model itself.
        source: the file and line of the model that it comes from; empty where it is not known.
        text: what is wrong, with the numbers.
        ranks: where; empty where it is no matter of ranks.
    """

    kind: str
    node: str
    module: str
    source: str
    text: str
    ranks: tuple[int, ...] = ()

    def __str__(self) -> str:
        where = ", ".join(filter(None, (self.module, self.source)))
        ranks = ", ".join(map(str, self.ranks))
        who = f"on rank{'s' * (len(self.ranks) > 1)} {ranks}: " if self.ranks else ""
        return f"{self.kind}: {self.node}{f' ({where})' if where else ''}\n    {who}{self.text}"


class Findings:
    """What is found wrong with one graph; the same on several ranks is one finding."""

    def __init__(self, parallel: ParallelGraph) -> None:
        self.nodes: dict[str, Node] = {node.name: node for node in parallel.graph.nodes}
        self._order = {name: position for position, name in enumerate(self.nodes)}
        self._names = names_of(parallel)
        self._found: dict[tuple[Node, str, str], list[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def name(self, node: Node) -> str:
        """What people call a node of the parallel graph."""
        return "the results" if node.op == "output" else self._names[node]

    def add(self, kind: str, node: Node, text: str, *ranks: int) -> None:
        """Note something about a node of the parallel graph."""
        self._found.setdefault((node, kind, text), []).extend(ranks)

    def listed(self) -> list[Finding]:
        """All of them, in the order of the graph."""
        order = sorted(self._found, key=lambda key: self._order[key[0].name])
        return [self._finding(*key, tuple(dict.fromkeys(self._found[key]))) for key in order]

    def _finding(self, node: Node, kind: str, text: str, ranks: tuple[int, ...]) -> Finding:
        return Finding(kind, self.name(node), module_path(node), source_line(node), text, ranks)
