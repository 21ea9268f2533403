"""Check a parallel graph: every operand in the layout that its user chose, every addend reduced before it
leaves."""

from __future__ import annotations

from torch.fx import Graph, Node
from ..ir.annotations import choice_of, gradients_in, layout_of
from ..errors import ShardingError
from ..ir.layout import Layout, Partial
from ..ir.nodes import is_mutable, is_tensor, tensor_nodes


def verify(graph: Graph) -> None:
    """Raise `ShardingError` at the first node that disagrees with its choice; a bug of a pass, never of a
    model."""
    for node in graph.nodes:
        choice = choice_of(node)
        if node.op == "output":
            _check_output(node)
        elif choice is not None and choice.kind not in ("input", "item"):
            for value, wanted in zip(tensor_nodes(node), choice.operands, strict=True):
                _check(node, value, wanted)
        if is_mutable(node) and node.all_input_nodes[0].op != "placeholder":
            raise ShardingError(f"{node.name} writes to {node.all_input_nodes[0].name}, which is a copy")
        if choice is not None and is_tensor(node) and layout_of(node) not in choice.results:
            raise ShardingError(f"{node.name} has a layout that its choice does not give")


def _check_output(output: Node) -> None:
    for value in tensor_nodes(output):
        if isinstance(layout_of(value), Partial):
            raise ShardingError(f"{value.name} leaves the graph as addends: its all-reduce is missing")
    for at, weight in gradients_in(output).items():
        value = output.args[0][at]  # type: ignore[index,assignment]
        if layout_of(value) != layout_of(weight):
            raise ShardingError(f"{value} is not laid out as {weight.name}, whose gradient it is")


def _check(node: Node, value: Node, wanted: Layout) -> None:
    if layout_of(value) != wanted:
        raise ShardingError(
            f"{node.name} needs {value.name} in another layout than it has: a collective is missing"
        )
