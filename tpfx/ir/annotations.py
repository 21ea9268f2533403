"""What the passes know of each node: the one place that touches `node.meta` for them.

`infer_axes` writes dimensions and bounds, `choose` the choices, everyone reads.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx import Node

from .axes import Size
from .layout import Layout, Replicate, Shards
from .rules import Bound, Dims, result_tensors

_DIMS, _BOUND, _LAYOUT, _CHOICE, _SOURCE, _GRADIENTS, _JOINED = (
    "tpfx_dims",
    "tpfx_bound",
    "tpfx_layout",
    "tpfx_choice",
    "tpfx_source",
    "tpfx_gradients",
    "tpfx_joined",
)
_MADE_FOR, _STANDS_FOR = "tpfx_made_for", "tpfx_stands_for"
# What a node that takes the place of another has from it.
ORIGIN = ("stack_trace", "nn_module_stack", "recompute", "ac_graph_id", "partitioner_tag")


@dataclass(frozen=True)
class Choice:
    """How an op is carried out: what each tensor operand must be, and what its results then are.

    `kind` is "whole", "split", or "pending" (a pending sum flows through).
    """

    kind: str
    operands: tuple[Layout, ...]
    results: tuple[Layout, ...]


@dataclass(frozen=True)
class Source:
    """What a graph's input is: a "parameter", "buffer", "state" (kept from call to call, sharded), "input",
    or "tangent" (the gradient of a result).

    Attributes:
        name: the qualified name of a parameter or buffer, otherwise a name for people.
        pinned: the shards that it already has, where an earlier graph chose them.
        mutated: whether the graph writes into it.
    """

    kind: str
    name: str
    pinned: Shards | None = None
    mutated: bool = False


def dims_of(node: Node) -> Dims:
    """The dimensions of the tensor that a node stands for."""
    dims: Dims = node.meta[_DIMS]
    return dims


def set_dims(node: Node, dims: Dims) -> None:
    """Record the dimensions of a tensor."""
    node.meta[_DIMS] = dims


def bound_of(node: Node) -> Bound | None:
    """What the op's rule says of this call; None for inputs, outputs and values that are no tensors."""
    return node.meta.get(_BOUND)


def set_bound(node: Node, bound: Bound) -> None:
    """Record what the rule says, and the dimensions of the result."""
    node.meta[_BOUND] = bound
    if isinstance(node.meta.get("val"), torch.Tensor):
        set_dims(node, bound.results[0])


def layout_of(node: Node) -> Layout:
    """The layout of the tensor that a node stands for."""
    layout: Layout = node.meta.get(_LAYOUT, Replicate())
    return layout


def set_layout(node: Node, layout: Layout) -> None:
    """Record the layout of a tensor."""
    node.meta[_LAYOUT] = layout


def choice_of(node: Node) -> Choice | None:
    """What `choose` decided for an op."""
    return node.meta.get(_CHOICE)


def set_choice(node: Node, choice: Choice) -> None:
    """Record a decision."""
    node.meta[_CHOICE] = choice


def source_of(node: Node) -> Source:
    """What an input of the graph is."""
    return node.meta.get(_SOURCE) or Source("input", node.name)


def set_source(node: Node, source: Source) -> None:
    """Record what an input of the graph is."""
    node.meta[_SOURCE] = source


def set_gradients(output: Node, gradients: dict[int, Node]) -> None:
    """Record which of the values that a graph returns is the gradient of which of its inputs."""
    output.meta[_GRADIENTS] = gradients


def gradients_in(output: Node) -> dict[int, Node]:
    """Of the values that a graph returns, those that are gradients: position and input."""
    gradients: dict[int, Node] = output.meta.get(_GRADIENTS, {})
    return gradients


def returned_as(node: Node) -> tuple[bool, list[Node]]:
    """Whether a value is a result of its graph, and the inputs whose gradient it is."""
    result, inputs = False, []
    for user in node.users:
        if user.op == "output":
            known = gradients_in(user)
            at = [index for index, value in enumerate(user.args[0]) if value is node]  # type: ignore[arg-type]
            inputs += [known[index] for index in at if index in known]
            result = result or any(index not in known for index in at)
    return result, inputs


def set_joined(node: Node) -> None:
    """Record that a result that is split inside is joined for whoever called the graph."""
    node.meta[_JOINED] = True


def is_joined(node: Node) -> bool:
    """Whether a result is split inside, and joined for the caller."""
    return bool(node.meta.get(_JOINED, False))


def set_made_for(made: Node, name: str) -> None:
    """Record for which node of the parallel graph a node of a rank's graph was written; copies keep it."""
    made.meta[_MADE_FOR] = name


def made_for(made: Node) -> str | None:
    """The name of the node of the parallel graph for which a node of a rank's graph was written."""
    name: str | None = made.meta.get(_MADE_FOR)
    return name


def add_stands_for(made: Node, name: str) -> None:
    """Record that a node of a rank's graph is what the rank has of a node of the parallel graph."""
    made.meta[_STANDS_FOR] = (*stands_for(made), name)


def stands_for(made: Node) -> tuple[str, ...]:
    """The names of the nodes of the parallel graph of which a node of a rank's graph is the rank's value.

    Several, where a rank has nothing to do: `pend` on rank 0, and a sum to which a rank adds zero.
    """
    names: tuple[str, ...] = made.meta.get(_STANDS_FOR, ())
    return names


def result_index(node: Node) -> int:
    """Which tensor result of its producer a getitem node takes."""
    producer, position = node.args
    assert isinstance(producer, Node) and isinstance(position, int)
    return sum(isinstance(item, torch.Tensor) for item in producer.meta["val"][:position])


def is_getitem(node: Node) -> bool:
    """Whether a node takes one result of an op that has several."""
    return node.target is operator.getitem


def is_view(node: Node) -> bool:
    """Whether an op only looks at its operand's memory."""
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target.is_view)


def size_of(extent: Any) -> Size:
    """A size of a fake tensor as an `int` or a simplified sympy expression."""
    if not isinstance(extent, torch.SymInt):
        return int(extent)
    expression = (
        extent.node.shape_env.replace(extent.node.expr) if extent.node.shape_env else extent.node.expr
    )
    return int(expression) if isinstance(expression, sympy.Integer) else expression


def hint_of(extent: Any) -> int:
    """A size as a number: that of the first inputs where it is symbolic."""
    if not isinstance(extent, torch.SymInt):
        return int(extent)
    return int(extent.node.hint) if extent.node.has_hint() else 64


def elements(value: torch.Tensor) -> int:
    """How many elements a tensor has, by its hints."""
    count = 1
    for extent in value.shape:
        count *= hint_of(extent)
    return count


def bytes_of(value: torch.Tensor) -> int:
    """The bytes of a tensor, by its hints."""
    return elements(value) * value.element_size()


def tensors_of(node: Node) -> list[torch.Tensor]:
    """The fake tensors that a node returns."""
    return result_tensors(node)
