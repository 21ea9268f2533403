"""Write the graph modules of the ranks that this process owns, from one parallel graph."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, GraphModule

from ..console.progress import working
from ..lowering.nested_graphs import place, rank_copy
from ..runtime.mesh import Mesh
from ..torch_internals.fx import LazyGraphModule
from .invariants import LOCALIZED, check
from .localize import localize
from .pipeline import STAGES
from .stages import LOCALIZE, show_stage


def lower(parallel: Graph, mesh: Mesh, root: torch.nn.Module) -> list[GraphModule]:
    """The graph modules of the ranks that this process owns; constants are taken from `root`.

    Raises:
        ShardingError: what must hold of the graphs does not, which is a bug of a pass.
    """
    graphs = []
    with working("writing the graph of each device") as at:
        for rank in mesh.owned:
            at(f"{rank + 1} of {mesh.size}")
            graphs.append(localize(parallel, rank, mesh.size, mesh.group_name(rank), rank in mesh.firsts))
    modules = []
    for rank, graph in zip(mesh.owned, graphs, strict=True):
        place(graph, mesh.devices[rank])
        constants = _constants(graph, root, mesh, rank)
        modules.append(LazyGraphModule(constants, graph, class_name=f"Rank{rank}"))
    check(LOCALIZE, LOCALIZED, (parallel, *(module.graph for module in modules)), mesh.size)
    for module in modules:
        show_stage(LOCALIZE, module.graph, STAGES)
    return modules


def _constants(graph: Graph, root: torch.nn.Module, mesh: Mesh, rank: int) -> dict[str, Any]:
    """What a graph refers to by name, on a rank's device: tensors, and graphs of branches or loops."""
    names = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    return {name: _constant(getattr(root, name), mesh, rank) for name in names}


def _constant(value: Any, mesh: Mesh, rank: int) -> Any:
    device = mesh.devices[rank]
    if isinstance(value, torch.nn.Module):
        return rank_copy(value, rank in mesh.firsts, mesh.group_name(rank), device)
    return value.to(device) if isinstance(value, torch.Tensor) and value.dim() else value
