"""What the inputs of captured graphs are: weights by name, state that graphs write into, inputs of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..errors import TpfxError
from ..ir.annotations import Source
from ..ir.nodes import is_mutable
from ..torch_internals.parameter_slots import slots_of


def weight_sources(model: torch.nn.Module) -> dict[int, Source]:
    """What each parameter and buffer of a model is, by its id; tied ones have their first name."""
    sources: dict[int, Source] = {}
    for slot in slots_of(model):
        sources.setdefault(id(slot.value), Source(slot.kind, slot.name))
    return sources


def input_sources(module: GraphModule, values: Sequence[Any], weights: Mapping[int, Source]) -> list[Source]:
    """What each input of one of Dynamo's graphs is, where weights are known by the ids of their tensors."""
    placeholders = module.graph.find_nodes(op="placeholder")
    return [
        weights.get(id(value), Source("input", node.name))
        for node, value in zip(placeholders, values, strict=True)
    ]


def settle_sources(lowered: GraphModule, sources: Sequence[Source]) -> list[Source]:
    """What the inputs of an ATen graph are: those that it writes into are state, and tangents come last.

    Raises:
        TpfxError: AOTAutograd made other inputs than Dynamo gave it.
    """
    placeholders = lowered.graph.find_nodes(op="placeholder")
    inputs = [node for node in placeholders if not is_tangent(node)]
    if len(inputs) != len(sources):
        raise TpfxError(
            f"the captured graph takes {len(inputs)} inputs where the model gave {len(sources)}: it "
            "writes to inputs that share memory (pass copies), or has an op with side effects, as linalg.inv"
        )
    mutable = (node.args[0] for node in lowered.graph.nodes if is_mutable(node))
    written = {operand for operand in mutable if isinstance(operand, Node)}
    settled = []
    for node, source in zip(inputs, sources, strict=True):
        kind = "state" if node in written and source.kind == "input" else source.kind
        settled.append(replace(source, kind=kind, mutated=node in written))
    return settled + [Source("tangent", node.name) for node in placeholders[len(inputs) :]]


def is_tangent(node: Node) -> bool:
    """Whether an input of a joint graph is the gradient of one of its results."""
    return str(node.target).startswith("tangents")
