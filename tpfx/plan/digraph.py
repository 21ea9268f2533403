"""A parallel graph for networkx: what is timed and drawn is read from it.

    graph = digraph(parallel)
    graph.nodes[node]["op"]                   # "linear"
    networkx.dag_longest_path(graph)

Vertices are the nodes of the fx graph, in its order; edges run from operands to users. A collective is a
vertex. What is gathered for the caller has no node: the edge to the output says so.
"""

from __future__ import annotations

from typing import Any

import networkx
from torch.fx import Node

from ..ir.annotations import is_gathered_for_caller, layout_of
from ..ir.nodes import bytes_of, is_tensor, result_tensors
from ..ir.parallel_graph import ParallelGraph
from ..ir.provenance import module_path, op_name
from ..ir.resharding import COLLECTIVES

_KINDS = {"placeholder": "input", "get_attr": "constant", "output": "results"}


def digraph(parallel: ParallelGraph) -> networkx.DiGraph:
    """The parallel graph as a directed graph without circles.

    Returns:
        A graph whose vertices, the nodes of `parallel.graph`, have these attributes:

        op: as people call it; "input", "constant" or "results" of what computes nothing.
        layout: that of the tensor; None of what is no tensor.
        bytes: of the whole value, of all results together.
        module: the path of the module that it comes from.
        phase: "forward" or "backward".
        collective: "all_reduce", "all_gather", or None.

        An edge has `collective` ("gather" to the output for what the caller gets whole, or None) and `bytes`
        (of the value that passes along it).
    """
    graph = networkx.DiGraph()
    for node in parallel.graph.nodes:
        graph.add_node(node, **_attributes(node, node.name in parallel.backward))
        for operand in node.all_input_nodes:
            gathered = node.op == "output" and is_tensor(operand) and is_gathered_for_caller(operand)
            size = graph.nodes[operand]["bytes"]
            graph.add_edge(operand, node, collective="gather" if gathered else None, bytes=size)
    return graph


def _attributes(node: Node, is_backward: bool) -> dict[str, Any]:
    target: Any = node.target
    return {
        "op": _KINDS.get(node.op) or op_name(node),
        "layout": layout_of(node) if is_tensor(node) else None,
        "bytes": sum(map(bytes_of, result_tensors(node))),
        "module": module_path(node),
        "phase": "backward" if is_backward else "forward",
        "collective": COLLECTIVES.get(target),
    }
