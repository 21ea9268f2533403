"""Let what a graph takes in grow in its own memory, where the graph joins new rows to it and returns that.

let_grow(graph, results={0})

cat([past, new], 2) … return (cat,)   becomes   grown(past, new, 2) … return (grown,)

Caches of keys and values are not copied in a step: `growing.h` says where the new rows go.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.fx import Graph, Node

from ..ir.nodes import is_view

aten = torch.ops.aten


def grown(past: torch.Tensor, new: torch.Tensor, dim: int) -> torch.Tensor:
    """`cat` of two tensors; the executor has an instruction for it, which may leave room in the strides."""
    return torch.cat([past, new], dim)


def let_grow(graph: Graph, results: Collection[int]) -> None:
    """Rewrite a rank's graph; `results`: those of which nobody sees the strides."""
    returned: Any = graph.output_node().args[0]
    values = {_base(value) for at, value in enumerate(returned) if at in results}
    for node in graph.find_nodes(op="call_function", target=aten.cat.default):
        parts, dim = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if node in values and type(dim) is int and len(parts) == 2 and parts[0].op == "placeholder":
            node.target, node.args, node.kwargs = grown, (*parts, dim), {}


def _base(value: Any) -> Any:
    """What a value is a view of, as the rows of a window that slides are."""
    while isinstance(value, Node) and is_view(value):
        value = value.args[0]
    return value
