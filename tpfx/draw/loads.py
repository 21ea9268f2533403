"""What each op of a planned graph takes: seconds on each rank, bytes for later calls and bytes that live."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Node

from ..ir.parallel_graph import ParallelGraph
from ..ir.resharding import COLLECTIVES
from ..plan.estimate import Run
from ..plan.explain import Price
from ..planning import Topology


@dataclass(frozen=True)
class Load:
    """What one op takes.

    Attributes:
        seconds: on each rank, or one number where all have the same; empty where it takes none.
        kept: bytes on each rank of what it makes, or writes to, and a later call takes; empty for none.
        alive: bytes of activations on the rank that is shown, while it runs and after it.
        ways: in which it could be carried out, the cheapest first; empty where no other is known.
    """

    seconds: tuple[float, ...]
    kept: tuple[int, ...]
    alive: tuple[int, int]
    ways: Sequence[Price]


class Loads:
    """Those of one graph.

    Args:
        parallel: the graph.
        topology: what it was planned with.
        handed_on: the results that later graphs take.
        prices: of its decisions, by names of nodes.
        rank: of which activations are counted.
    """

    def __init__(
        self,
        parallel: ParallelGraph,
        topology: Topology,
        handed_on: Collection[int],
        prices: Mapping[str, Sequence[Price]],
        rank: int,
    ) -> None:
        self._run = Run(parallel.graph, parallel.ranks, topology, handed_on)
        self._prices = prices
        self._ranks = range(parallel.ranks)
        self._living = self._run.living(rank)
        self._kept: defaultdict[Node, list[Node]] = defaultdict(list)
        for node in self._run.kept_nodes():
            user = next(iter(node.users), node)  # of an input that is written to, whoever takes it first
            self._kept[user if node.op == "placeholder" else node].append(node)

    def of(self, node: Node) -> Load:
        """What an op takes; of a weight, its ways."""
        kept = tuple(sum(self._run.bytes(one, rank) for one in self._kept[node]) for rank in self._ranks)
        return Load(
            self._seconds(node),
            kept if any(kept) else (),
            self._living.get(node, (0, 0)),
            self._prices.get(node.name, ()),
        )

    def alive(self, nodes: Sequence[Node]) -> tuple[int, int]:
        """Bytes of activations at their most while some ops run, and after the last of them."""
        living = [self._living[node] for node in nodes]
        return max((during for during, _ in living), default=0), living[-1][1] if living else 0

    def _seconds(self, node: Node) -> tuple[float, ...]:
        if node.target in COLLECTIVES:
            return (self._run.slowest(node),)
        found = tuple(self._run.seconds(node, rank) for rank in self._ranks)
        if not any(found):
            return ()
        return found[:1] if len(set(found)) == 1 else found
