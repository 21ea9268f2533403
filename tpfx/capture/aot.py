"""From one of Dynamo's graphs to ATen graphs, and what the inputs of those are.

AOTAutograd sees plain tensors of full size and keeps handling mutation and aliasing. Where gradients are
wanted it traces forward and backward as one joint graph, which is planned as a whole and then parted in two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch.fx import GraphModule, Node

from ..errors import TpfxError
from ..ir.annotations import Source
from ..torch_internals.aot import aot_module_simplified
from ..torch_internals.fake import unset_fake_temporarily
from ..torch_internals.fx import OpOverload
from .decompositions import decompositions
from .joint import is_tangent

Compiled = Callable[..., Any]


class Compiler(Protocol):
    """What becomes of traced graphs: what is called with a list of arguments, which it may empty."""

    def inference(self, lowered: GraphModule) -> Compiled:
        """A graph without gradients."""

    def partition(self, joint: GraphModule, results: int, **options: Any) -> tuple[GraphModule, GraphModule]:
        """The forward and the backward part of a joint graph of which the first `results` are the model's."""

    def forward(self, lowered: GraphModule) -> Compiled:
        """The forward part."""

    def backward(self, lowered: GraphModule) -> Compiled:
        """The backward part."""


def trace(module: GraphModule, compiler: Compiler, fakes: Sequence[Any]) -> Compiled:
    """Lower one of Dynamo's graphs to ATen, for a compiler."""

    def outside(
        finish: Callable[[GraphModule], Compiled],
    ) -> Callable[[GraphModule, Sequence[Any]], Compiled]:
        def run(lowered: GraphModule, _: Sequence[Any]) -> Compiled:
            with unset_fake_temporarily():
                return finish(lowered)

        return run

    def partition(
        joint: GraphModule, inputs: Any, *, num_fwd_outputs: int, **options: Any
    ) -> tuple[GraphModule, GraphModule]:
        return compiler.partition(joint, num_fwd_outputs, inputs=inputs, **options)

    compiled: Compiled = aot_module_simplified(
        module,
        list(fakes),
        fw_compiler=outside(compiler.forward),
        bw_compiler=outside(compiler.backward),
        inference_compiler=outside(compiler.inference),
        partition_fn=partition,
        decompositions=decompositions(),
        keep_inference_input_mutations=True,
    )
    return compiled


def boxed(compiled: Compiled) -> Compiled:
    """The same, to be called with one list of arguments, as AOTAutograd is then told."""

    def run(args: list[Any]) -> Any:
        return compiled(args)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def settle_sources(lowered: GraphModule, sources: Sequence[Source]) -> list[Source]:
    """What the inputs of an ATen graph are: those that it writes into are state.

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
    written = _written(lowered)
    settled = []
    for node, source in zip(inputs, sources, strict=True):
        kind = "state" if node in written and source.kind == "input" else source.kind
        settled.append(replace(source, kind=kind, mutated=node in written))
    return settled + [Source("tangent", node.name) for node in placeholders[len(inputs) :]]


def _written(lowered: GraphModule) -> set[Node]:
    """The inputs that the graph writes into."""
    return {
        node.args[0]
        for node in lowered.graph.nodes
        if isinstance(node.target, OpOverload)
        and node.target._schema.is_mutable
        and isinstance(node.args[0], Node)
        and node.args[0].op == "placeholder"
    }
