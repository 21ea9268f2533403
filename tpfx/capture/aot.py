"""The life of a captured graph: from Dynamo through AOTAutograd to whoever plans, runs, keeps or verifies it.

AOTAutograd sees plain tensors of full size and keeps handling mutation and aliasing. Where gradients are
wanted it traces forward and backward as one joint graph, which is planned as a whole and then parted in two.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch.fx import GraphModule, Node

from ..ir.annotations import Source
from ..ir.parallel_graph import ParallelGraph
from ..torch_internals.aot import aot_module_simplified, drawing_as_eager, notes_now
from ..torch_internals.fake import equate_sizes, unset_fake_temporarily
from .decompositions import decompositions
from .folding import Folded, NotAlike, fold
from .gradient_flow import Dependence, GradientFlow
from .graph import Captured, Joint
from .nested_results import Nesting, note_nesting
from .random_state import check_draws, check_preserved, stays
from .recurrent import take_apart
from .sources import settle_sources

log = logging.getLogger("tpfx")

Compiled = Callable[..., Any]
Part = Literal["whole", "forward", "backward"]


class Use(Protocol):
    """What is made of the graph, or of the joint graph, that AOTAutograd lowers one of Dynamo's to."""

    def plan(self, graph: Captured) -> ParallelGraph | None:
        """Plan a graph in place; or give None, and it goes on as it was captured."""

    def finish(self, lowered: GraphModule, part: Part) -> Compiled:
        """What runs a graph, or a part of a joint one; it takes a list of arguments, which it may empty."""

    def differentiate(self, compiled: Compiled, flow: GradientFlow) -> Compiled:
        """What runs a joint graph, where autograd asks more of it than one backward."""


def example_value(node: Node) -> Any:
    """The fake tensor, or size, that Dynamo has captured an input with."""
    return node.meta["example_value"]


def trace(
    module: GraphModule,
    sources: Sequence[Source],
    use: Use,
    fake: Callable[[Node], Any] = example_value,
) -> Compiled:
    """Lower one of Dynamo's graphs to ATen, have it planned, part forward and backward, have both finished.

    Args:
        module: the graph.
        sources: what each of its inputs is, in order.
        use: what is done with it.
        fake: the fake tensor, or size, to lower an input of the graph with.

    Raises:
        TpfxError: AOTAutograd made other inputs than Dynamo gave it, or something draws random numbers where
            the devices cannot draw as one does.
    """
    take_apart(module)
    fakes = [fake(node) for node in module.graph.find_nodes(op="placeholder")]
    equate_sizes(fakes)
    folded = None if _wants_gradients(fakes) else fold(module)
    if folded is not None:
        try:
            return trace_module(folded.module, fakes, sources, use, Nesting(), folded)
        except NotAlike:
            log.debug("layers that are alike in Dynamo's graph are not in AOTAutograd's: all are traced")
    return trace_module(module, fakes, sources, use, note_nesting(module))


def _wants_gradients(fakes: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(
        value.requires_grad for value in fakes if isinstance(value, torch.Tensor)
    )


def trace_module(
    module: torch.nn.Module,
    fakes: Sequence[Any],
    sources: Sequence[Source],
    use: Use,
    nesting: Nesting | None = None,
    folded: Folded | None = None,
) -> Compiled:
    """The same, of any module that takes tensors and returns a tuple of them; `fakes` are its inputs.

    Raises:
        NotAlike: of a folded module, that there is no way to unfold what it is lowered to.
    """
    unfold = None if folded is None else folded.unfolding(fakes)
    seen = nesting or Nesting()
    known: list[tuple[Dependence, GraphModule]] = []
    flows: list[GradientFlow] = []

    def whole(lowered: GraphModule, _: Sequence[Any]) -> Compiled:
        with unset_fake_temporarily():
            if unfold is not None:
                unfold(lowered)
            check_draws(lowered.graph)
            use.plan(Captured(lowered, settle_sources(lowered, sources)))
            return use.finish(lowered, "whole")

    def partition(
        lowered: GraphModule, inputs: Any, *, num_fwd_outputs: int, **options: Any
    ) -> tuple[GraphModule, GraphModule]:
        joint = Joint(num_fwd_outputs, inputs, options)
        if not inputs:  # a region of its own inside the graph, which is called whole
            return joint.parts(lowered)
        dependence = Dependence.of(lowered, num_fwd_outputs)
        with unset_fake_temporarily():
            check_draws(lowered.graph)
            check_preserved(module, lowered.graph)
            parallel = use.plan(Captured(lowered, settle_sources(lowered, sources), joint))
        forward, backward = joint.parts(lowered, parallel)
        known.append((dependence, backward))
        return forward, backward

    def finish(part: Part) -> Callable[[GraphModule, Sequence[Any]], Compiled]:
        def run(lowered: GraphModule, _: Sequence[Any]) -> Compiled:
            if part == "forward":
                dependence, backward = known.pop()
                flows.append(dependence.flow(notes_now(), backward, seen))
            with unset_fake_temporarily():
                return use.finish(lowered, part)

        return run

    with drawing_as_eager(stays(module)):
        compiled: Compiled = aot_module_simplified(
            module,
            list(fakes),
            fw_compiler=finish("forward"),
            bw_compiler=finish("backward"),
            inference_compiler=whole,
            partition_fn=partition,
            decompositions=decompositions(),
            keep_inference_input_mutations=True,
        )
    return use.differentiate(compiled, flows[0]) if flows else compiled


def boxed(compiled: Compiled) -> Compiled:
    """The same, to be called with one list of arguments, as AOTAutograd is then told."""

    def run(args: list[Any]) -> Any:
        return compiled(args)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run
