"""The critical path of a planned graph: what would still take its time if all else ran beside it.

    graph = timed(parallel, topology)
    critical_path(graph)        # CriticalPath(seconds=0.0123, nodes=[tokens, embedding, …, logits])

`estimate` adds up everything, one after the other; the truth lies between the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx
from torch.fx import Node

from ..ir.parallel_graph import ParallelGraph
from ..planning import Topology
from .digraph import digraph
from .estimate import Run

_END = "end"


@dataclass(frozen=True)
class CriticalPath:
    """A chain of ops and collectives, each of which needs the one before, that takes longest.

    Attributes:
        seconds: how long it takes.
        nodes: of the parallel graph, from an input or a constant to a result.
    """

    seconds: float
    nodes: list[Node]


def timed(parallel: ParallelGraph, topology: Topology) -> networkx.DiGraph:
    """`digraph` with `seconds`: on a vertex those of its op on the slowest rank, or of its collective; on an
    edge those from the start of the operand's op until the user has its value."""
    graph, run = digraph(parallel), Run(parallel.graph, parallel.ranks, topology)
    for node, found in graph.nodes(data=True):
        found["seconds"] = run.slowest(node)
    for operand, _, found in graph.edges(data=True):
        sent = run.sent(found["collective"], found["bytes"]) if found["collective"] else 0.0
        found["seconds"] = graph.nodes[operand]["seconds"] + sent
    return graph


def critical_path(graph: networkx.DiGraph) -> CriticalPath:
    """The longest path through what `timed` gives."""
    ended = graph.copy()
    for node in graph:
        if not graph.out_degree(node):  # the output, and what nothing uses
            ended.add_edge(node, _END, seconds=graph.nodes[node]["seconds"])
    path = networkx.dag_longest_path(ended, weight="seconds")
    seconds = networkx.path_weight(ended, path, weight="seconds")
    return CriticalPath(seconds, [node for node in path if node != _END])
