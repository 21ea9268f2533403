"""What an fx node says of itself: its tensors, its arguments by name, its sizes and bytes."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from functools import cache
from typing import Any

import sympy
import torch
from torch.fx import Graph, GraphModule, Node

from ..torch_internals.fake import with_exact_divisions
from ..torch_internals.fx import HigherOrderOperator, OpOverload
from .axes import Size

UNKNOWN = 64  # what a size counts as that only the run will tell


def result_index(node: Node) -> int:
    """Which tensor result of its producer a getitem node takes."""
    several, position = node.args
    assert isinstance(several, Node) and isinstance(position, int)
    before = result_index(several) if is_getitem(several) else 0
    return before + len(_tensors(several.meta["val"][:position]))


def producer_of(item: Node) -> Node:
    """The op of whose results a getitem node takes one, where these lie in tuples within tuples too."""
    several = item.args[0]
    assert isinstance(several, Node)
    return producer_of(several) if is_getitem(several) else several


def is_getitem(node: Node) -> bool:
    """Whether a node takes one result of an op that has several."""
    return node.target is operator.getitem


def is_view(node: Node) -> bool:
    """Whether an op only looks at its operand's memory."""
    return isinstance(node.target, OpOverload) and bool(node.target.is_view)


def size_of(extent: Any) -> Size:
    """A size of a fake tensor as an `int` or a simplified sympy expression."""
    if not isinstance(extent, torch.SymInt):
        return int(extent)
    expression = (
        extent.node.shape_env.replace(extent.node.expr) if extent.node.shape_env else extent.node.expr
    )
    if expression.is_Symbol:
        return expression
    simpler = with_exact_divisions(extent, expression)
    expression = simpler if simpler.is_integer else expression
    return int(expression) if isinstance(expression, sympy.Integer) else expression


def hint_of(extent: Any) -> int:
    """A size as a number: that of the first inputs where it is symbolic."""
    if not isinstance(extent, torch.SymInt):
        return int(extent)
    return int(extent.node.hint) if extent.node.has_hint() else UNKNOWN


def elements(value: torch.Tensor) -> int:
    """How many elements a tensor has, by its hints."""
    count = 1
    for extent in value.shape:
        count *= hint_of(extent)
    return count


def bytes_of(value: torch.Tensor) -> int:
    """The bytes of a tensor, by its hints."""
    return elements(value) * value.element_size()


def result_tensors(node: Node) -> list[torch.Tensor]:
    """The fake tensors that a node returns, those of a tuple or list one after the other."""
    return _tensors(node.meta.get("val"))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, torch.Tensor) else []


def is_tensor(value: object) -> bool:
    """Whether a node stands for one tensor."""
    return isinstance(value, Node) and isinstance(value.meta.get("val"), torch.Tensor)


def is_check(node: Node) -> bool:
    """Whether a node is an op that gives nothing, and is called for what it may raise."""
    return isinstance(node.target, OpOverload) and not node.target._schema.returns and not is_mutable(node)


def is_mutable(node: Node) -> bool:
    """Whether a call writes into its first operand."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def tensor_nodes(node: Node) -> Iterator[Node]:
    """The tensor arguments of a node in order, those in lists too, each as often as it occurs."""
    for argument in (*node.args, *node.kwargs.values()):
        for item in argument if isinstance(argument, (list, tuple)) else (argument,):
            if is_tensor(item):
                assert isinstance(item, Node)
                yield item


@cache
def parameters(target: OpOverload) -> tuple[tuple[str, Any], ...]:
    """The names and defaults of an op's arguments."""
    return tuple((argument.name, argument.default_value) for argument in target._schema.arguments)


@cache
def signature(target: HigherOrderOperator) -> tuple[tuple[str, Any], ...]:
    """The names and defaults of the arguments of an op that calls graphs, as far as it names them."""
    taken = inspect.signature(type(target).__call__).parameters.values()
    named = [one for one in taken if one.kind is one.POSITIONAL_OR_KEYWORD][1:]
    return tuple((one.name, None if one.default is one.empty else one.default) for one in named)


def arguments(node: Node) -> dict[str, Any]:
    """A call's arguments by name, defaults filled in."""
    if isinstance(node.target, HigherOrderOperator):
        known = signature(node.target)
        if len(known) < len(node.args):
            known = tuple((str(at), None) for at in range(len(node.args)))
    elif isinstance(node.target, OpOverload):
        known = parameters(node.target)
    else:
        return {str(index): argument for index, argument in enumerate(node.args)} | dict(node.kwargs)
    named = dict(known)
    named.update(zip((name for name, _ in known), node.args, strict=False))
    named.update(node.kwargs)
    return named


def copy_graph(module: GraphModule) -> GraphModule:
    """The same graph in a graph of its own, with the same fake tensors and constants."""
    made: dict[Node, Node] = {}
    graph = Graph()
    for node in module.graph.nodes:
        made[node] = graph.node_copy(node, made.__getitem__)
    return GraphModule(module, graph)


def device_of(value: Any, device: torch.device) -> torch.device:
    """Where a rank on a device has what a graph has as `value`: what lies on the host stays there."""
    elsewhere = isinstance(value, torch.Tensor) and value.device.type != device.type
    return value.device if elsewhere else device
