"""Graphs that an op of a rank's graph calls, branches or loops: in them too, rank 0 draws for all.

    dropout(x, 0.5, True)   becomes   broadcast_random(draws, group, dropout, (x, 0.5, True), {})

An op that calls them does so on every rank, and what it decides by (a predicate, a count) every rank has
whole: so all ranks come to the same draws, in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

from ..kernels.collectives import broadcast_again, broadcast_and_keep, broadcast_random, broadcast_sized
from ..rules import may_draw

higher_order = torch.ops.higher_order


def broadcast_of(node: Node, draws: bool, group: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What a rank calls in the place of a call that draws, and with what; `draws`: it does so for others."""
    op, args, kwargs = node.target, node.args, dict(node.kwargs)
    if op is higher_order.run_and_save_rng_state:
        return broadcast_and_keep, (draws, group, args[0], args[1:], kwargs)
    if op is higher_order.run_with_rng_state:
        return broadcast_again, (draws, group, args[0], args[1], args[2:], kwargs)
    if node.meta.get("unbacked_bindings"):  # it reads sizes from values
        made = node.meta["val"]
        kinds = [(one.dtype, one.dim()) for one in ([made] if isinstance(made, torch.Tensor) else made)]
        return broadcast_sized, (draws, group, op, args, kwargs, kinds, isinstance(made, torch.Tensor))
    return broadcast_random, (draws, group, op, args, kwargs)


def rank_copy(module: torch.nn.Module, draws: bool, group: str, device: torch.device) -> torch.nn.Module:
    """A rank's own copy of a graph that an op calls, on its device."""
    made = copy.deepcopy(module).to(device)
    for inner in made.modules():
        if isinstance(inner, GraphModule):
            _coordinate(inner, draws, group)
            place(inner.graph, device)
            inner.recompile()
    return made


def _coordinate(module: GraphModule, draws: bool, group: str) -> None:
    for node in module.graph.nodes:
        if may_draw(node):
            node.target, node.args = broadcast_of(node, draws, group)
            node.kwargs = {}


def place(graph: Graph, device: torch.device) -> None:
    """Make on a rank's own GPU what the captured graph makes on the first one."""
    if device.type == "cpu":
        return

    def own(given: Any) -> Any:
        return device if isinstance(given, torch.device) and given.type == device.type else given

    for node in graph.nodes:
        node.args, node.kwargs = map_aggregate((node.args, node.kwargs), own)
