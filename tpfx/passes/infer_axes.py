"""Find out what every dimension of every tensor is made of.

infer_axes(graph)
show(dims_of(weight))     # ['[(a:4 b:16)|(a b)|(a b)]', 'c:64']: a packed q|k|v weight
"""

from __future__ import annotations

from torch.fx import Graph, Node

from ..ir.annotations import bound_of, dims_of, gradients_in, set_dims
from ..ir.axes import Dim, unify
from ..ir.nodes import is_getitem, is_tensor, result_index, result_tensors, size_of, tensor_nodes
from ..rules import rule_for
from ..rules.bind import bind


def infer_axes(graph: Graph) -> None:
    """Give every tensor its dimensions and every op what its rule says of it."""
    for node in graph.nodes:
        if is_getitem(node):
            producer = node.args[0]
            assert isinstance(producer, Node)
            bound = bound_of(producer)
            assert bound is not None
            if is_tensor(node):
                set_dims(node, bound.results[result_index(node)])
        elif node.op == "call_function" and (result_tensors(node) or any(tensor_nodes(node))):
            bind(node, rule_for(node.target))
        elif is_tensor(node):
            set_dims(node, [Dim(size_of(extent)) for extent in node.meta["val"].shape])
    output = graph.output_node()
    for at, weight in gradients_in(output).items():
        gradient: Node = output.args[0][at]  # type: ignore[index,assignment]
        for left, right in zip(dims_of(gradient), dims_of(weight), strict=True):
            unify(left, right)
    for node in graph.nodes:
        if (bound := bound_of(node)) is not None:
            bound.settle()
