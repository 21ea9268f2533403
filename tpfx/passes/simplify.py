"""Drop ops that do nothing and ops that were done before.

slice(x, 0, 0, end) → x        mul(x, 1.0) → x        unsqueeze(cos), once a layer → once
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.fx import Graph, Node

from ..ir.annotations import gradients_in
from ..ir.nodes import is_tensor, is_view, size_of
from ..rules import may_draw
from ..torch_internals.fx import HigherOrderOperator, OpOverload

aten = torch.ops.aten


def simplify(graph: Graph) -> None:
    """Remove no-ops and repetitions; what the graph returns stays tensors of their own."""
    _reduce(graph)
    if _copy_shared_gradients(graph):
        _reduce(graph)


def _reduce(graph: Graph) -> None:
    known: dict[Hashable, Node] = {}
    for node in removable(graph):
        other = nothing_done(node) or _seen(node, known)
        if other is not None:
            node.replace_all_uses_with(other)
            graph.erase_node(node)


def _copy_shared_gradients(graph: Graph) -> bool:
    """Two weights may have the same gradient, or that of a result; autograd adds to each in place.

    Returns:
        Whether there was one to copy.
    """
    output, taken, copied = graph.output_node(), set(), False
    results: Any = output.args[0]
    returned = list(results)
    for at in gradients_in(output):
        value = returned[at]
        root = _memory_of(value)
        if root in taken or root.op == "placeholder":
            with graph.inserting_before(output):
                returned[at] = graph.call_function(aten.clone.default, (value,))
            returned[at].meta, copied = dict(value.meta), True
        taken.add(root)
    if copied:
        output.args = (type(results)(returned),)
    return copied


def _memory_of(node: Node) -> Node:
    """The value in whose memory another may lie, which is a view of it."""
    while (is_view(node) or node.target in _MAYBE_VIEWS) and is_tensor(node.args[0]):
        node = node.args[0]  # type: ignore[assignment]
    return node


def removable(graph: Graph) -> list[Node]:
    """The calls that another value may stand for: pure ones that the graph does not return."""
    returned = set(graph.output_node().all_input_nodes)
    return [
        node for node in graph.nodes if node.op == "call_function" and node not in returned and _pure(node)
    ]


def _pure(node: Node) -> bool:
    target = node.target
    if not isinstance(target, OpOverload):  # getitem and arithmetic of sizes; higher-order ops call others
        return not isinstance(target, HigherOrderOperator)
    return not target._schema.is_mutable and not may_draw(node) and target.namespace in ("aten", "prims")


def _seen(node: Node, known: dict[Hashable, Node]) -> Node | None:
    first = known.setdefault((node.target, arguments_key(node)), node)
    return first if first is not node else None


def arguments_key(node: Node) -> Hashable:
    """What a call is given, as a key that is the same for the same arguments alone."""
    return _frozen(node.args), _frozen(node.kwargs)


def _frozen(value: Any) -> Hashable:
    """Arguments as a key: 1, 1.0 and True are not the same."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple((name, _frozen(item)) for name, item in value.items())
    return value if isinstance(value, Node) else (type(value), value)


def nothing_done(node: Node) -> Node | None:
    """The operand that a node returns as it is, if it does."""
    test = _NO_OPS.get(node.target)
    source = node.args[0] if node.args else None
    if test is None or not is_tensor(source):
        return None
    assert isinstance(source, Node)
    return source if _alike(source, node) and test(node) else None


def _alike(source: Node, node: Node) -> bool:
    before, after = source.meta["val"], node.meta["val"]
    if not isinstance(after, torch.Tensor) or before.dtype != after.dtype or before.device != after.device:
        return False
    return [size_of(extent) for extent in before.shape] == [size_of(extent) for extent in after.shape]


def _scalar(neutral: int) -> Callable[[Node], bool]:
    return lambda node: type(node.args[1]) in (int, float) and bool(node.args[1] == neutral)


def _always(node: Node) -> bool:
    return True


def _one_step(node: Node) -> bool:
    return len(node.args) < 5 or bool(node.args[4] == 1)


_MAYBE_VIEWS = (aten.reshape.default, aten.contiguous.default)

_NO_OPS: dict[Any, Callable[[Node], bool]] = {
    aten.slice.Tensor: _one_step,
    aten.mul.Tensor: _scalar(1),
    aten.div.Tensor: _scalar(1),
    aten.add.Tensor: _scalar(0),
    aten.sub.Tensor: _scalar(0),
    aten.expand.default: _always,
    aten.reshape.default: _always,
    aten._to_copy.default: _always,
    aten.alias.default: _always,
    aten.detach.default: _always,
}
