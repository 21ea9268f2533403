"""Whether a run of a graph can be recorded and replayed, as a CUDA graph say.

A recording holds what the devices do, not what the host does: it cannot read a value, draw numbers by the
host's count, or call code of which nothing is known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from ..ir.nodes import result_tensors
from ..rules import is_of_torch, may_draw
from ..torch_internals.fx import HigherOrderOperator, OpOverload

_INDEXED = ("index", "_unsafe_index", "index_put", "_unsafe_index_put", "index_put_")
_READ_BY_THE_HOST = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)


def obstacle(graph: Graph, devices: tuple[torch.device, ...]) -> str | None:
    """Why runs of a planned graph cannot be recorded; None where they can."""
    kind = devices[0].type
    found = (_obstacle(node, kind) for node in graph.nodes if node.op != "output")
    return next((why for why in found if why is not None), None)


def _obstacle(node: Node, kind: str) -> str | None:
    target = node.target
    elsewhere = {value.device.type for value in result_tensors(node)} - {kind}
    if elsewhere:
        return f"{node.name} is on the {elsewhere.pop()}"
    if isinstance(target, HigherOrderOperator):
        return f"{node.name} calls graphs, maybe as values say"
    if not isinstance(target, OpOverload):
        return None
    if _reads_values(node, target):
        return f"the host reads values for {node.name}"
    if not is_of_torch(target):
        return f"{node.name} is {target}, which may do things on the host"
    if may_draw(node):
        return f"{node.name} draws random numbers"
    return None


def _reads_values(node: Node, op: OpOverload) -> bool:
    """Whether the host must know what is in a tensor: how many elements a mask has, say."""
    if op._opname in _INDEXED:
        indices: Any = node.args[1]
        values = [index.meta["val"] for index in indices if index is not None]
        return any(value.dtype in (torch.bool, torch.uint8) for value in values)
    return any(tag in op.tags for tag in _READ_BY_THE_HOST)
