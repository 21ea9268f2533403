"""What the passes know of each node: the one place that touches `node.meta` for them.

`infer_axes` writes dimensions and bounds, `choose` the choices, everyone reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from .layout import Layout, Replicate, Split, unfold
from .op_dims import Bound, Dims
from .shards import Shards, concrete

_DIMS, _BOUND, _LAYOUT, _CHOICE, _SOURCE, _GRADIENTS, _GATHERED = (
    "tpfx_dims",
    "tpfx_bound",
    "tpfx_layout",
    "tpfx_choice",
    "tpfx_source",
    "tpfx_gradients",
    "tpfx_joined",
)


@dataclass(frozen=True)
class Choice:
    """How an op is carried out: what each tensor operand must be, and what its results then are.

    `kind` is "whole", "split", or "pending" (a partial sum flows through).
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

    @property
    def is_weight(self) -> bool:
        """Whether it is a parameter or a buffer of the model."""
        return self.kind in ("parameter", "buffer")


def dims_of(node: Node) -> Dims:
    """The dimensions of the tensor that a node stands for."""
    dims: Dims = node.meta[_DIMS]
    return dims


def has_dims(node: Node) -> bool:
    """Whether inference has given a tensor its dimensions."""
    return _DIMS in node.meta


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


def is_weight(node: Node) -> bool:
    """Whether a node is an input of the graph that is a parameter or a buffer of the model."""
    return node.op == "placeholder" and source_of(node).is_weight


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


def set_gathered_for_caller(node: Node) -> None:
    """Record that a result that is split inside is joined for whoever called the graph."""
    node.meta[_GATHERED] = True


def is_gathered_for_caller(node: Node) -> bool:
    """Whether a result is split inside, and joined for the caller."""
    return bool(node.meta.get(_GATHERED, False))


def shards_of(node: Node) -> Shards:
    """The layout of a tensor in a parallel graph, made concrete."""
    layout: Layout = layout_of(node)
    if not isinstance(layout, Split):
        return Shards()
    dims, unfolding = unfold(dims_of(node), layout)
    return Shards(concrete(dims, layout).dims, unfolding)
