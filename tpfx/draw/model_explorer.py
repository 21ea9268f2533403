"""A plan for Google's Model Explorer, which draws large graphs: every op a node, modules as namespaces.

tpfx dump llama --devices 8 --format model-explorer > llama.json      then: model-explorer llama.json

The format is that of its graph_builder.py: graphs, nodes with incoming edges, and attributes as strings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.fx import Node

from ..dump.node_text import Lines
from ..ir.nodes import is_tensor
from ..ir.parallel_graph import Parallel
from ..ir.provenance import source_line
from ..plan.plan import Plan
from .layers import homes


def model_explorer(plan: Plan, parallels: Sequence[Parallel]) -> dict[str, Any]:
    """A collection of graphs, to be written as JSON."""
    graphs = [
        {"id": f"{at} {graph.phase}", "nodes": list(_nodes(parallel))}
        for at, (graph, parallel) in enumerate(zip(plan.graphs, parallels, strict=True))
    ]
    return {"label": f"{plan.model} on {plan.devices} devices", "graphs": graphs}


def _nodes(parallel: Parallel) -> Iterator[dict[str, Any]]:
    nodes: list[Node] = list(parallel.graph.nodes)
    lines = Lines(nodes)
    places = homes(parallel, lines.names)
    for node in nodes:
        if node.op == "output":
            yield {"id": node.name, "label": "results", "namespace": "", "incomingEdges": _edges(node)}
            continue
        name, is_input = lines.names[node], node.op == "placeholder"
        row = lines.input(node) if is_input and is_tensor(node) else lines.op(node)
        inside = name.rpartition(".")[0] if is_input else places[node].path
        attributes = {"name": name, "call": "" if is_input else row.expression}
        attributes |= {"split": ", ".join(row.comments), "source": source_line(node)}
        yield {
            "id": node.name,
            "label": name if is_input else row.expression.partition("(")[0],
            "namespace": inside.replace(".", "/"),
            "attrs": [{"key": key, "value": value} for key, value in attributes.items() if value],
            "incomingEdges": _edges(node),
            "outputsMetadata": [{"id": "0", "attrs": [{"key": "tensor_shape", "value": row.type}]}],
        }


def _edges(node: Node) -> list[dict[str, str]]:
    return [
        {"sourceNodeId": operand.name, "sourceNodeOutputId": "0", "targetNodeInputId": str(at)}
        for at, operand in enumerate(node.all_input_nodes)
    ]
