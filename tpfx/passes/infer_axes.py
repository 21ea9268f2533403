"""Find out what every dimension of every tensor is made of.

infer_axes(graph)
show(dims_of(weight))     # ['[(a:4 b:16)|(a b)|(a b)]', 'c:64']: a packed q|k|v weight
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Graph, Node

from ..ir.annotations import bound_of, dims_of, gradients_in, set_dims
from ..ir.axes import Dim
from ..ir.nodes import is_getitem, is_tensor, producer_of, result_index, result_tensors, size_of, tensor_nodes
from ..planning.apart import Apart, alias, folded_weights, same_dims
from ..rules import rule_for
from ..rules.bind import bind
from ..rules.rule import Rule
from ..rules.whole_dims import unsplit


def infer_axes(graph: Graph) -> None:
    """Give every tensor its dimensions and every op what its rule says of it."""
    apart = None
    _new_inputs(graph)
    _bind_ops(graph, bind)
    for at, weight in gradients_in(graph.output_node()).items():
        same_dims(dims_of(_returned(graph)[at]), dims_of(weight))
    if weights := folded_weights(graph):
        _new_inputs(graph)
        apart = Apart(weights)
        _bind_ops(graph, apart.bind)
    _join_gradients(graph, apart)
    for node in graph.nodes:
        if (bound := bound_of(node)) is not None:
            bound.settle()


def _new_inputs(graph: Graph) -> None:
    """Give what no op makes dimensions of which nothing is known."""
    for node in graph.nodes:
        if node.op != "call_function" and is_tensor(node):
            set_dims(node, [Dim(size_of(extent)) for extent in node.meta["val"].shape])


def _bind_ops(graph: Graph, bound_by: Callable[[Node, Rule | None], object]) -> None:
    """Bind the rule of each op, and give elements of tuples the dimensions of results."""
    for node in graph.nodes:
        if is_getitem(node):
            bound = bound_of(producer_of(node))
            assert bound is not None
            if is_tensor(node):
                set_dims(node, bound.results[result_index(node)])
        elif node.op == "call_function" and (result_tensors(node) or any(tensor_nodes(node))):
            bound_by(node, rule_for(node.target))


def _returned(graph: Graph) -> list[Node]:
    returned: Any = graph.output_node().args[0]
    return list(returned)


def _join_gradients(graph: Graph, apart: Apart | None) -> None:
    """A gradient has the dimensions of its weight; one of other structure takes them on where it is whole."""
    output = graph.output_node()
    if not gradients_in(output):
        return
    returned, kind = _returned(graph), type(output.args[0])
    for at, weight in gradients_in(output).items():
        if apart is not None:
            returned[at] = apart.join(returned[at], weight)
        if not same_dims(dims_of(returned[at]), dims_of(weight)):
            returned[at] = alias(output, returned[at], Rule(unsplit), like=weight)
            same_dims(dims_of(returned[at]), dims_of(weight))
    output.args = (returned if kind is list else tuple(returned),)
