"""Put a collective on every edge whose two ends disagree about the layout.

linear [partial sum] → add [whole]     becomes     linear → all_reduce → add
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.fx import Graph, Node

from ..ir.annotations import (
    choice_of,
    dims_of,
    gradients_in,
    layout_of,
    set_dims,
    set_gathered_for_caller,
    set_layout,
)
from ..ir.layout import Layout, Partial, Replicate, Split
from ..ir.nodes import is_tensor, tensor_nodes
from ..ir.provenance import ORIGIN
from ..ir.resharding import all_gather, all_reduce, shard, to_partial
from .choose import returned_whole


def insert(graph: Graph) -> None:
    """Convert values where users need another layout; each conversion once, whoever shares it.

    What the caller gets whole is marked: it is gathered when the graph has run, for the caller alone.
    """
    made: dict[tuple[Node, Layout], Node] = {}
    for node in list(graph.nodes):
        for position, (value, wanted) in enumerate(_needs(node)):
            if layout_of(value) != wanted:
                _replace_operand(node, position, _converted(value, wanted, made))
    for value in graph.output_node().all_input_nodes:
        if isinstance(layout_of(value), Split) and returned_whole(value):
            set_gathered_for_caller(value)


def _needs(node: Node) -> Iterator[tuple[Node, Layout]]:
    """Each tensor operand of a node, as it occurs, and the layout that it is needed in."""
    choice = choice_of(node)
    if node.op == "output":
        gradients = gradients_in(node)
        for at, value in enumerate(node.args[0]):  # type: ignore[arg-type]
            if is_tensor(value):
                assert isinstance(value, Node)
                held = layout_of(gradients.get(at, value))
                yield value, Replicate() if isinstance(held, Partial) else held
    elif choice is not None and choice.kind not in ("input", "item"):
        yield from zip(tensor_nodes(node), choice.operands, strict=True)


def _visit(node: Node, change: Callable[[Node], Node]) -> None:
    """Apply a function to each tensor operand in order, and put what it returns in its place."""

    def walk(argument: Any) -> Any:
        if isinstance(argument, (list, tuple)):
            return type(argument)(walk(item) for item in argument)
        return change(argument) if is_tensor(argument) else argument

    node.args = tuple(walk(argument) for argument in node.args)
    node.kwargs = {name: walk(argument) for name, argument in node.kwargs.items()}


def _replace_operand(node: Node, position: int, value: Node) -> None:
    seen = -1

    def change(operand: Node) -> Node:
        nonlocal seen
        seen += 1
        return value if seen == position else operand

    _visit(node, change)


def _converted(value: Node, wanted: Layout, made: dict[tuple[Node, Layout], Node]) -> Node:
    key = (value, wanted)
    if key not in made:
        made[key] = _convert(value, wanted, made)
    return made[key]


def _convert(value: Node, wanted: Layout, made: dict[tuple[Node, Layout], Node]) -> Node:
    held = layout_of(value)
    match held, wanted:
        case Partial(), Replicate():
            return _add(value, value, all_reduce, (value, held), wanted)
        case Split(), Replicate():
            return _add(value, value, all_gather, (value, held), wanted)
        case Replicate(), Split():
            return _add(value, value, shard, (value, wanted), wanted)
        case Replicate(), Partial():
            return _add(value, value, to_partial, (value,), wanted)
        case _:
            whole = _converted(value, Replicate(), made)
            return _converted(whole, wanted, made)


def _add(after: Node, like: Node, target: Callable[..., Any], args: tuple[Any, ...], layout: Layout) -> Node:
    with after.graph.inserting_after(_last_input(after)):
        node = after.graph.create_node("call_function", target, args, name=f"{after.name}_{target.__name__}")
    node.meta = {key: like.meta[key] for key in ("val", *ORIGIN[:2]) if key in like.meta}
    set_dims(node, dims_of(like))
    set_layout(node, layout)
    return node


def _last_input(node: Node) -> Node:
    """Inputs stay together at the head of the graph."""
    while node.op == "placeholder" and node.next.op == "placeholder":
        node = node.next
    return node
