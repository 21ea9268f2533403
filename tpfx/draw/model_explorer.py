"""A plan for Google's Model Explorer, which draws large graphs: every op a node, modules as namespaces.

tpfx dump llama --devices 8 --format model-explorer > llama.json      then: model-explorer llama.json

The format is that of its graph_builder.py: graphs, nodes with incoming edges, and attributes as strings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import networkx
from torch.fx import Node

from ..dump.node_text import Lines
from ..formatting import seconds_text
from ..ir.nodes import is_tensor
from ..ir.parallel_graph import ParallelGraph
from ..ir.provenance import source_line
from ..plan.critical_path import critical_path, timed
from ..plan.plan import Plan
from ..planning import Topology
from .layers import homes


def model_explorer(plan: Plan, parallels: Sequence[ParallelGraph]) -> dict[str, Any]:
    """A collection of graphs, to be written as JSON."""
    graphs = [
        {"id": f"{at} {graph.phase}", "nodes": list(_nodes(parallel, plan.topology))}
        for at, (graph, parallel) in enumerate(zip(plan.graphs, parallels, strict=True))
    ]
    return {"label": f"{plan.model} on {plan.devices} devices", "graphs": graphs}


def _nodes(parallel: ParallelGraph, topology: Topology) -> Iterator[dict[str, Any]]:
    graph = timed(parallel, topology)
    slow = set(critical_path(graph).nodes)
    lines = Lines(list(graph))
    places = homes(parallel, lines.names)
    for node, found in graph.nodes(data=True):
        if node.op == "output":
            yield {"id": node.name, "label": "results", "namespace": "", "incomingEdges": _edges(graph, node)}
            continue
        name, is_input = lines.names[node], node.op == "placeholder"
        row = lines.input(node) if is_input and is_tensor(node) else lines.op(node)
        inside = name.rpartition(".")[0] if is_input else places[node].path
        attributes = {"name": name, "call": "" if is_input else row.expression}
        attributes |= {"split": ", ".join(row.comments), "source": source_line(node)}
        attributes["time, predicted"] = seconds_text(found["seconds"]) if found["seconds"] else ""
        attributes["critical path"] = "yes" if found["seconds"] and node in slow else ""
        yield {
            "id": node.name,
            "label": name if is_input else row.expression.partition("(")[0],
            "namespace": inside.replace(".", "/"),
            "attrs": [{"key": key, "value": value} for key, value in attributes.items() if value],
            "incomingEdges": _edges(graph, node),
            "outputsMetadata": [{"id": "0", "attrs": [{"key": "tensor_shape", "value": row.type}]}],
        }


def _edges(graph: networkx.DiGraph, node: Node) -> list[dict[str, str]]:
    return [
        {"sourceNodeId": operand.name, "sourceNodeOutputId": "0", "targetNodeInputId": str(at)}
        for at, operand in enumerate(graph.predecessors(node))
    ]
