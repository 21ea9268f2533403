"""A backend of Dynamo that keeps the graphs it is given, and runs them as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import GraphModule

from ..ir.annotations import Source
from ..torch_internals.dynamo import mark_dynamic_sizes
from .aot import Compiled, Part, boxed, trace
from .gradient_flow import GradientFlow
from .graph import Captured, Phase, require_any_batch
from .sources import input_sources, on_leaves


@dataclass
class GraphRecorder:
    """A backend of Dynamo that keeps the graphs, and runs them as they are.

    Attributes:
        sources: what each parameter and buffer is, by the id of its fake tensor.
        symbolic: whether sizes that vary in a result are to be open in the graph that takes it.
        phase: the call that is being captured.
        around: in which graphs run: where what they make is to be fake though nothing that they take is.
        any_batch: whether graphs are refused that do for some batches alone.
        captured: the graphs.
        results: which graph made a tensor, as which result, by its id; and the tensor, to keep that id.
    """

    sources: dict[int, Source]
    symbolic: bool
    phase: Phase
    around: AbstractContextManager[Any] = field(default_factory=nullcontext)
    any_batch: bool = False
    captured: list[Captured] = field(default_factory=list)
    results: dict[int, tuple[tuple[int, int], torch.Tensor]] = field(default_factory=dict)

    def backend(self, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """What Dynamo calls with a graph."""
        return on_leaves(module, example_inputs, self._compile)

    def _compile(self, module: GraphModule, values: Sequence[Any]) -> Callable[..., Any]:
        kept = {at: self.results[id(v)][0] for at, v in enumerate(values) if id(v) in self.results}
        return trace(module, input_sources(module, values, self.sources), _Recording(self, kept))

    @contextmanager
    def for_any_batch(self) -> Iterator[None]:
        """For captures inside `open_batches`: graphs that do for some batches alone are refused."""
        self.any_batch = True
        try:
            yield
        finally:
            self.any_batch = False

    def keep(self, number: int, lowered: GraphModule, values: Sequence[Any]) -> None:
        """Remember what a graph, given by its number, has returned, and which sizes vary."""
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
    """Keeps one graph, to be planned later."""

    recorder: GraphRecorder
    kept: dict[int, tuple[int, int]]
    number: int = -1  # of the graph, once it is kept

    def plan(self, graph: Captured) -> None:
        """Keep a copy of the graph; what runs, or not, is the graph as it is.

        Raises:
            SomeBatchesOnly: it was to do for any number of rows.
        """
        if self.recorder.any_batch:
            require_any_batch(graph)
        kept = {} if graph.joint else self.kept  # what a joint graph takes, another has given plain
        self.number = len(self.recorder.captured)
        self.recorder.captured.append(replace(graph.copy(), phase=self.recorder.phase, kept=kept))

    def finish(self, lowered: GraphModule, part: Part) -> Compiled:
        """Run the graph, or a part of it; the results of one without gradients may be kept for another."""

        def run(args: list[Any]) -> Any:
            with self.recorder.around:
                values = lowered(*args)
            if part == "whole":
                self.recorder.keep(self.number, lowered, values)
            return values

        return boxed(run)

    def differentiate(self, compiled: Compiled, flow: GradientFlow) -> Compiled:
        """Nothing runs more than once here."""
        return compiled
