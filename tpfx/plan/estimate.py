"""What one run of a planned graph would take on each rank: memory beside the weights, and time.

The sizes are those of the inputs that the graph was captured with. Memory is counted in the order of the
graph, each value from the op that makes it to its last use; an allocator may need more. Time is that of
arithmetic, memory and collectives one after the other, as the topology has them; nothing overlaps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from ..ir.annotations import bound_of, choice_of, dims_of, is_gathered_for_caller, layout_of, source_of
from ..ir.nodes import bytes_of, elements, hint_of, is_getitem, is_tensor, is_view, tensor_nodes
from ..ir.parallel_graph import ParallelGraph
from ..ir.resharding import COLLECTIVES, shard
from ..planning import Topology
from ..planning.cost import CostModel

aten = torch.ops.aten

# What only looks at another value, where that lies as it should.
_VIEWS = (aten.reshape.default, aten.contiguous.default, shard)


@dataclass(frozen=True)
class Estimate:
    """What one run of a graph takes.

    Attributes:
        tokens: token ids that are put in; images, or other inputs, where no ids are.
        kept: bytes on each rank that a later call takes: keys, values, states.
        activations: bytes on each rank of what is computed, when they are most.
        compute: seconds of arithmetic and memory on the rank that takes longest.
        messages: seconds of collectives.
        unit: what is counted: "token", "image" or "input".
    """

    tokens: int
    kept: list[int]
    activations: list[int]
    compute: float
    messages: float
    unit: str = "token"

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compute + self.messages


def estimate(parallel: ParallelGraph, topology: Topology, handed_on: Collection[int] = ()) -> Estimate:
    """What one run of a planned graph takes, on a topology; later graphs take the results `handed_on`."""
    run = Run(parallel.graph, parallel.ranks, topology, handed_on)
    ranks = range(parallel.ranks)
    unit, count = asked(parallel)
    return Estimate(
        unit=unit,
        tokens=count,
        kept=[run.kept(rank) for rank in ranks],
        activations=[run.peak(rank) for rank in ranks],
        compute=max(sum(run.seconds(node, rank) for node in run.nodes) for rank in ranks),
        messages=sum(run.sent(one.kind, one.bytes) for one in parallel.collectives()),
    )


class Run:
    """One planned graph, or a part of it, with numbers in the place of sizes that vary."""

    def __init__(self, graph: Graph, ranks: int, topology: Topology, handed_on: Collection[int] = ()) -> None:
        self.ranks, self.handed_on = ranks, handed_on
        self.nodes: list[Node] = list(graph.nodes)
        self.cost = CostModel(graph, ranks, topology)
        self._sizes: dict[tuple[Node, int], int] = {}

    def bytes(self, node: Node, rank: int) -> int:
        """Those of a tensor on a rank."""
        if (node, rank) not in self._sizes:
            count = self.cost.sizes.elements(dims_of(node), layout_of(node), rank)
            self._sizes[node, rank] = count * int(node.meta["val"].element_size())
        return self._sizes[node, rank]

    def kept(self, rank: int) -> int:
        """Bytes of what a later call takes: results that one is known to take, or that the graph itself uses
        too, and inputs that it writes to."""
        return sum(self.bytes(node, rank) for node in self.kept_nodes())

    def kept_nodes(self) -> list[Node]:
        """What a later call takes."""
        results: Sequence[Any] = self.nodes[-1].args[0]  # type: ignore[assignment]
        taken = [results[at] for at in self.handed_on]
        written = [node for node in self.nodes if node.op == "placeholder" and _is_written_state(node)]
        returned = [node for node in results if isinstance(node, Node)]
        used = [node for node in returned if any(user.op != "output" for user in node.users)]
        kept = taken + [node for node in used if not is_gathered_for_caller(node)]
        own = [node for node in kept if is_tensor(node) and node.op != "placeholder"]
        return list(dict.fromkeys(written + own))

    def peak(self, rank: int) -> int:
        """The most bytes that live at once, weights, inputs and what is kept not counted."""
        return max((during for during, _ in self.living(rank).values()), default=0)

    def living(self, rank: int) -> dict[Node, tuple[int, int]]:
        """The bytes that live while each node runs and after it; those of `peak`."""
        owners = self._owners()
        uncounted = {owners.get(node, node) for node in self.kept_nodes()}
        last: dict[Node, int] = {}
        for at, node in enumerate(self.nodes):
            for operand in node.all_input_nodes:
                if operand in owners:
                    last[owners[operand]] = at
        living, found = 0, dict[Node, tuple[int, int]]()
        ends: dict[int, list[Node]] = {}
        for at, node in enumerate(self.nodes):
            if owners.get(node) is node and node not in uncounted:
                living += self.bytes(node, rank)
                ends.setdefault(last.get(node, at), []).append(node)
            during = living
            living -= sum(self.bytes(gone, rank) for gone in ends.pop(at, ()))
            found[node] = during, living
        return found

    def _owners(self) -> dict[Node, Node]:
        """For each computed tensor, the node that made its memory; views have that of what they look at."""
        owners: dict[Node, Node] = {}
        for node in self.nodes:
            if node.op != "call_function" or not is_tensor(node):
                continue
            if not _is_view(node):
                owners[node] = node
            elif (below := next(iter(tensor_nodes(node)), None)) in owners:
                owners[node] = owners[below]
        return owners

    def seconds(self, node: Node, rank: int) -> float:
        """Launch, arithmetic and memory of an op on a rank; none of what only looks at another value."""
        choice = choice_of(node)
        if node.op != "call_function" or bound_of(node) is None or choice is None:
            return 0.0  # a backward part has inputs that know how the forward part has made them
        if is_getitem(node) or _is_view(node):
            return 0.0
        return self.cost.topology.launch + self.cost.seconds_of(self.cost.work(node, choice, rank))

    def sent(self, kind: str, size: int) -> float:
        """Seconds of a collective; one rank alone sends nothing."""
        return self.cost.collective(kind, size) if self.ranks > 1 else 0.0

    def slowest(self, node: Node) -> float:
        """Seconds of an op on the rank that takes longest for it, or of a collective."""
        if node.target in COLLECTIVES:
            return self.sent(COLLECTIVES[node.target], bytes_of(node.meta["val"]))
        return max(self.seconds(node, rank) for rank in range(self.ranks))


def _is_written_state(node: Node) -> bool:
    """Whether an input is written to, as a state or a cache of a fixed size is; weights are counted apart."""
    source = source_of(node)
    return source.mutated and not source.is_weight and is_tensor(node)


def _is_view(node: Node) -> bool:
    return is_view(node) or node.target in _VIEWS


def asked(parallel: ParallelGraph) -> tuple[str, int]:
    """What a graph is given, by dtype and shape, and how many: token ids, images, or other inputs."""
    inputs = [
        node.meta["val"]
        for node in parallel.graph.find_nodes(op="placeholder")
        if source_of(node).kind == "input" and is_tensor(node) and node.meta["val"].dim()
    ]
    ids = next((elements(value) for value in inputs if is_ids(value)), None)
    if ids is not None:
        return "token", ids
    floats = [value for value in inputs if value.is_floating_point()]
    first = next(iter(floats or inputs), None)
    return ("input", 1) if first is None else (unit_of(first), hint_of(first.shape[0]))


def is_ids(value: torch.Tensor) -> bool:
    """Whether something may be token ids: integers of two dimensions."""
    return value.dim() == 2 and value.dtype in (torch.int64, torch.int32)


def unit_of(value: torch.Tensor) -> str:
    """What each of the first dimension of what is no token ids is: an image, or an input of another kind."""
    return "image" if value.is_floating_point() and value.dim() == 4 else "input"
