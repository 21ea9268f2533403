"""From one of Dynamo's graphs to an ATen graph, and what the inputs of that are.

AOTAutograd sees plain tensors of full size and keeps handling mutation and aliasing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .annotations import Source
from .errors import TpfxError
from .torch_compiler import aot_module_simplified, unset_fake_temporarily


def trace(
    module: GraphModule, finish: Callable[[GraphModule], Callable[..., Any]], fakes: Sequence[Any]
) -> Callable[..., Any]:
    """Lower one of Dynamo's graphs to ATen; `finish` says what runs it, given a list that it may empty."""

    def inference(lowered: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        with unset_fake_temporarily():
            return finish(lowered)

    compiled: Callable[..., Any] = aot_module_simplified(
        module,
        list(fakes),
        fw_compiler=inference,
        bw_compiler=_no_backward,
        inference_compiler=inference,
        keep_inference_input_mutations=True,
    )
    return compiled


def _no_backward(lowered: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
    def refuse(args: list[Any]) -> Any:
        raise TpfxError(
            "backward through a compiled model is not there yet; call the model under torch.no_grad()"
        )

    refuse._boxed_call = True  # type: ignore[attr-defined]
    return refuse


def settle_sources(lowered: GraphModule, sources: Sequence[Source]) -> list[Source]:
    """What the inputs of an ATen graph are: those that it writes into are state.

    Raises:
        TpfxError: AOTAutograd made other inputs than Dynamo gave it.
    """
    placeholders = lowered.graph.find_nodes(op="placeholder")
    if len(placeholders) != len(sources):
        raise TpfxError(
            f"the captured graph takes {len(placeholders)} inputs where the model gave {len(sources)}: it "
            "writes to inputs that share memory (pass copies), or has an op with side effects, as linalg.inv"
        )
    written = _written(lowered)
    settled = []
    for node, source in zip(placeholders, sources, strict=True):
        kind = "state" if node in written and source.kind == "input" else source.kind
        settled.append(replace(source, kind=kind, mutated=node in written))
    return settled


def _written(lowered: GraphModule) -> set[Node]:
    """The inputs that the graph writes into."""
    return {
        node.args[0]
        for node in lowered.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.is_mutable
        and isinstance(node.args[0], Node)
        and node.args[0].op == "placeholder"
    }
