"""A planned graph: layouts chosen, collectives in place, and what was proved of the choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch.fx import Graph, Node

from .annotations import is_gathered_for_caller
from .nodes import bytes_of
from .resharding import COLLECTIVES
from .splits import Splits


@dataclass(frozen=True)
class Solution:
    """The `assignment` found; none costs less than `bound`, which is `cost` when `optimal`.

    `width` is the largest number of variables in an eliminated table, less one.
    """

    assignment: list[int]
    cost: float
    bound: float
    optimal: bool
    width: int


@dataclass(frozen=True)
class Collective:
    """One collective of a graph.

    Attributes:
        kind: "all_reduce", "all_gather", or "gather" (of a result, for the caller alone).
        bytes: the size of the whole value.
        node: the node whose value it moves.
        phase: "forward" or "backward".
    """

    kind: str
    bytes: int
    node: str
    phase: str = "forward"


@dataclass
class ParallelGraph:
    """A planned graph: layouts chosen and collectives in place.

    Attributes:
        graph: the parallel graph, one for all ranks.
        solution: the chooser's solution: its cost in seconds, and whether it is proven optimal.
        whole_ops: ops that run whole for want of a rule, and how often.
        backward: the names of the nodes that run in the backward pass.
        splits: the splits that were considered.
        fingerprint: tells the graph from others, whatever their sizes that vary.
        recalled: whether it was planned by what an earlier plan says.
    """

    graph: Graph
    solution: Solution
    ranks: int
    splits: Splits
    fingerprint: str
    recalled: bool = False
    whole_ops: dict[str, int] = field(default_factory=dict)
    backward: frozenset[str] = frozenset()

    def collectives(self) -> list[Collective]:
        """The collectives of the graph, in order."""
        found = []
        for node in self.graph.nodes:
            if node.target in COLLECTIVES:
                phase = "backward" if node.name in self.backward else "forward"
                size, value = bytes_of(node.meta["val"]), node.args[0]
                found.append(Collective(COLLECTIVES[node.target], size, value.name, phase))
        for node in self.outputs():
            if is_gathered_for_caller(node):
                found.append(Collective("gather", bytes_of(node.meta["val"]), node.name))
        return found

    def outputs(self) -> list[Node]:
        """The nodes that the graph returns."""
        returned: Sequence[Node] = self.graph.output_node().args[0]  # type: ignore[assignment]
        return [node for node in returned if isinstance(node, Node)]
