"""Write the graph modules of the ranks that this process owns, from one parallel graph."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.fx import Graph, GraphModule

from ..runtime.mesh import Mesh
from .invariants import LOCALIZED, check
from .localize import localize
from .pipeline import STAGES
from .stages import LOCALIZE, show_stage


def lower(parallel: Graph, mesh: Mesh, root: torch.nn.Module) -> list[GraphModule]:
    """The graph modules of the ranks that this process owns; constants are taken from `root`.

    Raises:
        ShardingError: what must hold of the graphs does not, which is a bug of a pass.
    """
    graphs = [
        localize(parallel, rank, mesh.size, mesh.group_name(rank), rank in mesh.firsts) for rank in mesh.owned
    ]
    check(LOCALIZE, LOCALIZED, (parallel, *graphs), mesh.size)
    for graph in graphs:
        show_stage(LOCALIZE, graph, STAGES)
    modules = []
    for rank, graph in zip(mesh.owned, graphs, strict=True):
        _place(graph, mesh.devices[rank])
        constants = _constants(graph, root, mesh.devices[rank])
        modules.append(GraphModule(constants, graph, class_name=f"Rank{rank}"))
    return modules


def _place(graph: Graph, device: torch.device) -> None:
    """Make on a rank's own GPU what the captured graph makes on the first one."""
    for node in graph.nodes:
        given = node.kwargs.get("device")
        if isinstance(given, torch.device) and given.type == device.type != "cpu":
            node.kwargs = {**node.kwargs, "device": device}


def _constants(graph: Graph, root: torch.nn.Module, device: torch.device) -> dict[str, Any]:
    """What a graph refers to by name, on a device: tensors, and graphs of branches or loops."""
    names = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    return {name: _constant(getattr(root, name), device) for name in names}


def _constant(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value).to(device)
    return value.to(device) if isinstance(value, torch.Tensor) and value.dim() else value
