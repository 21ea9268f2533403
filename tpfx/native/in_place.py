"""Write into an input at once, where a graph makes a new value of it and copies that there at the end.

write_in_place(graph)

index_copy(keys, 2, at, new) … copy_(keys, index_copy)   becomes   index_copy_(keys, 2, at, new)

A cache of a fixed size is neither made anew nor copied in a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Graph, Node

from ..ir.nodes import is_view
from ..kernels.slices import dense_rows

aten = torch.ops.aten

# Ops that change some elements of their first operand; shape and dtype are its own.
_IN_PLACE: dict[Any, Any] = {
    aten.index_copy.default: aten.index_copy_.default,
    aten.index_put.default: aten.index_put_.default,
    aten.index_add.default: aten.index_add_.default,
    aten.masked_fill.Scalar: aten.masked_fill_.Scalar,
    aten.masked_fill.Tensor: aten.masked_fill_.Tensor,
    aten.scatter.src: aten.scatter_.src,
    aten.scatter.value: aten.scatter_.value,
}
_MAYBE_VIEWS = (aten.reshape.default, aten.contiguous.default, dense_rows)


def write_in_place(graph: Graph) -> None:
    """Rewrite a rank's graph, where nobody can tell."""
    for copy in graph.find_nodes(op="call_function", target=aten.copy_.default):
        target: Any = copy.args[0]
        value: Any = copy.args[1]
        if _only_this_is_made_of(target, value, copy):
            value.target = _IN_PLACE[value.target]
            copy.replace_all_uses_with(value)
            graph.erase_node(copy)


def _only_this_is_made_of(target: Any, value: Any, copy: Node) -> bool:
    """Whether a value is made of an input that nothing else uses, and leaves the graph in no other way."""
    return (
        target.op == "placeholder"
        and isinstance(value, Node)
        and value.target in _IN_PLACE
        and set(target.users) == {value, copy}
        and value.args[0] is target
        and not any(user.op == "output" for user in _users_of_memory(value) if user is not copy)
    )


def _users_of_memory(node: Node) -> Iterator[Node]:
    """What uses a value, or a view of it."""
    for user in node.users:
        yield user
        if is_view(user) or user.target in _MAYBE_VIEWS:
            yield from _users_of_memory(user)
