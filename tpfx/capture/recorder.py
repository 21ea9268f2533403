"""A backend of Dynamo that keeps the graphs it is given, and runs them as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch.fx import GraphModule

from ..ir.annotations import Source
from ..ir.nodes import copy_graph
from ..torch_internals.dynamo import mark_dynamic_sizes
from .aot import boxed, settle_sources, trace
from .joint import Joint

Phase = Literal["prefill", "decode", "train"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass
class Captured:
    """One graph of a model, as AOTAutograd gives it.

    Attributes:
        module: the ATen graph, with fake tensors under `val`.
        sources: what each of the graph's inputs is, in order.
        phase: in which call it was captured.
        kept: which inputs are results of earlier graphs: their position, then the graph's and the result's.
        joint: what parts a joint graph in forward and backward; None for a forward graph.
    """

    module: GraphModule
    sources: list[Source]
    phase: Phase = "prefill"
    kept: dict[int, tuple[int, int]] = field(default_factory=dict)
    joint: Joint | None = None


@dataclass
class GraphRecorder:
    """A backend of Dynamo that keeps the graphs, and runs them as they are.

    Attributes:
        sources: what each parameter and buffer is, by the id of its fake tensor.
        symbolic: whether sizes that vary in a result are to be open in the graph that takes it.
        phase: the call that is being captured.
        captured: the graphs.
        results: which graph made a tensor, as which result, by its id; and the tensor, to keep that id.
    """

    sources: dict[int, Source]
    symbolic: bool
    phase: Phase
    captured: list[Captured] = field(default_factory=list)
    results: dict[int, tuple[tuple[int, int], torch.Tensor]] = field(default_factory=dict)

    def backend(self, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """What Dynamo calls with a graph."""
        placeholders = module.graph.find_nodes(op="placeholder")
        sources = [
            self.sources.get(id(value), Source("input", node.name))
            for node, value in zip(placeholders, example_inputs, strict=True)
        ]
        kept = {at: self.results[id(v)][0] for at, v in enumerate(example_inputs) if id(v) in self.results}
        return trace(
            module, _Recording(self, sources, kept), [node.meta["example_value"] for node in placeholders]
        )

    def keep(self, lowered: GraphModule, values: Sequence[Any]) -> None:
        """Remember what a graph has returned, and which sizes vary."""
        number = next(at for at, one in enumerate(self.captured) if one.module is lowered)
        nodes: Sequence[Any] = lowered.graph.output_node().args[0]  # type: ignore[assignment]
        for at, (node, value) in enumerate(zip(nodes, values, strict=True)):
            if isinstance(value, torch.Tensor):
                self.results[id(value)] = (number, at), value
                varying = {
                    i for i, size in enumerate(node.meta["val"].shape) if isinstance(size, torch.SymInt)
                }
                if varying and self.symbolic:
                    mark_dynamic_sizes(value, varying)


@dataclass
class _Recording:
    """Keeps the graphs that AOTAutograd makes of one of Dynamo's."""

    recorder: GraphRecorder
    sources: list[Source]
    kept: dict[int, tuple[int, int]]

    def inference(self, lowered: GraphModule) -> Callable[..., Any]:
        """Keep a graph without gradients."""
        one = Captured(lowered, settle_sources(lowered, self.sources), self.recorder.phase, self.kept)
        self.recorder.captured.append(one)

        def run(args: list[Any]) -> Any:
            values = lowered(*args)
            self.recorder.keep(lowered, values)
            return values

        return boxed(run)

    def partition(self, joint: GraphModule, results: int, **options: Any) -> tuple[GraphModule, GraphModule]:
        """Keep a joint graph; its parts are run, or not, as they are."""
        whole = copy_graph(joint)
        sources = settle_sources(joint, self.sources)
        made = Joint(results, options)
        self.recorder.captured.append(Captured(whole, sources, self.recorder.phase, joint=made))
        return made.parts(joint)

    def forward(self, lowered: GraphModule) -> Callable[..., Any]:
        """The forward part of a joint graph."""
        return boxed(lambda args: lowered(*args))

    def backward(self, lowered: GraphModule) -> Callable[..., Any]:
        """Its backward part."""
        return boxed(lambda args: lowered(*args))
