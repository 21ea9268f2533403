"""The compiler that Dynamo and AOTAutograd call with the graphs that they capture.

AOTAutograd sees plain tensors of full size and keeps handling mutation and aliasing; what it gets back takes
and returns sharded tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..capture.aot import Compiled, Part, boxed, trace
from ..capture.graph import Captured
from ..execution.output_strides import Strides
from ..execution.program import Program, Ranks
from ..ir.annotations import Source, set_source, shards_of, source_of
from ..ir.parallel_graph import ParallelGraph
from ..lowering.device_compiler import compile_for_devices
from ..passes.apply_plan import encode_choices
from ..passes.lower import lower
from ..passes.pipeline import parallelize
from ..planning.whole_weights import why_whole
from ..runtime.mesh import Mesh
from ..runtime.processes import require_same
from ..sharded_tensor import ShardedTensor
from ..torch_internals.aot import aliased_outputs
from ..torch_internals.batch_guards import serves_any_batch
from ..torch_internals.distributed import outside_traces
from .session import Session


def compile_graph(session: Session, module: GraphModule, example_inputs: Sequence[Any]) -> Compiled:
    """Dynamo's backend: plan a graph, write one for each rank, return what runs them."""
    return _traced(module, _Lowering(session, example_inputs))


def compile_for_any_batch(session: Session, module: GraphModule, example_inputs: Sequence[Any]) -> Compiled:
    """Dynamo's backend inside `open_batches`; it refuses graphs that do for some batches alone."""
    return _traced(module, _LoweringForAnyBatch(session, example_inputs))


def plan_graph(session: Session, module: GraphModule, example_inputs: Sequence[Any]) -> Compiled:
    """Dynamo's backend while planning: choose layouts for the parameters, run nothing."""
    return _traced(module, _LayoutsOnly(session, example_inputs))


def _traced(module: GraphModule, use: _LayoutsOnly) -> Compiled:
    placeholders = module.graph.find_nodes(op="placeholder")
    mesh = use.session.mesh
    sources = [_source(value, node.name, mesh) for value, node in zip(use.inputs, placeholders, strict=True)]
    return trace(module, sources, use, _fake)


@dataclass
class _LayoutsOnly:
    """Plans a graph for the layouts of its weights; running it raises `LayoutsChosen`."""

    session: Session
    inputs: Sequence[Any]  # those that Dynamo gives as examples, with the weights
    results: Sequence[Any] = ()  # fake values of the model's results, as they were before any pass

    def plan(self, graph: Captured) -> ParallelGraph:
        """Plan a graph, and divide its weights once the other processes have planned the same."""
        self.results = graph.results()
        session = self.session
        lowered, ranks = graph.module.graph, session.mesh.size
        parallel = parallelize(lowered, graph.sources, ranks, session.topology, session.choices)
        session.newest = parallel
        require_same(session.mesh, "the graphs or plans", _plan_text(session.mesh, parallel))
        for op, count in parallel.whole_ops.items():
            session.whole_ops[op] = session.whole_ops.get(op, 0) + count
        self._distribute(parallel)
        return parallel

    def _distribute(self, parallel: ParallelGraph) -> None:
        """Give parameters that had no layout the one that this graph chose."""
        placeholders = parallel.graph.find_nodes(op="placeholder")
        for node, value in zip(placeholders, self.inputs, strict=False):  # tangents come last
            own = isinstance(value, ShardedTensor) and value.mesh.same_as(self.session.mesh)
            if own and value.pinned is None:
                layout = shards_of(node)
                why = None if layout else why_whole(node, parallel.splits)
                value.whole_because = why
                with outside_traces():  # what was stored evenly is gathered first
                    value.distribute(layout, chosen=why is None or not why.forced)
                set_source(node, replace(source_of(node), pinned=layout))

    def finish(self, lowered: GraphModule, part: Part) -> Compiled:
        """What ends the call."""

        def end(args: list[Any]) -> Any:
            raise LayoutsChosen

        return boxed(end)


class _Lowering(_LayoutsOnly):
    """Plans, and writes a graph for each rank."""

    def finish(self, lowered: GraphModule, part: Part) -> Compiled:
        """What runs a graph, or a part: results of the backward one are gradients, laid out as its inputs."""
        session, backward = self.session, part == "backward"
        modules = lower(lowered.graph, session.mesh, lowered)
        meeting = session.runtime.native_meeting
        name, mesh = session.device_compiler, session.mesh
        forwards = compile_for_devices(name, lowered.graph, modules, mesh, meeting)
        placeholders = lowered.graph.find_nodes(op="placeholder")
        views = frozenset() if backward else aliased_outputs()
        exact = {at: Strides(self.results[at], placeholders) for at in views}
        seen = len(self.results) if part == "forward" else None
        kept = [at for at, value in enumerate(self.inputs) if isinstance(value, ShardedTensor) and backward]
        session.graphs += not backward  # forward and backward count as one graph
        ranks = Ranks(session.runtime, modules, forwards)
        return Program(lowered.graph, ranks, kept, exact, seen, session.count_run)


class _LoweringForAnyBatch(_Lowering):
    """Lowers graphs that do for any number of rows."""

    def plan(self, graph: Captured) -> ParallelGraph:
        """Plan a graph, but none whose guards mind the number of rows."""
        if not serves_any_batch(node.meta["val"] for node in graph.module.graph.find_nodes(op="placeholder")):
            raise SomeBatchesOnly("what was captured does for some batches alone")
        return super().plan(graph)


def _plan_text(mesh: Mesh, parallel: ParallelGraph) -> Iterator[bytes]:
    """What processes that run one graph together must agree on."""
    if mesh.group is not None:
        choices, units = encode_choices(parallel.graph, parallel.splits)
        yield f"{parallel.fingerprint} {list(choices.values())} {units}".encode()


class LayoutsChosen(Exception):
    """Ends a call that was only made to choose layouts for the weights."""


class SomeBatchesOnly(Exception):
    """Ends the capture of a graph that was to do for any number of rows."""


def _source(value: Any, name: str, mesh: Mesh) -> Source:
    """What one of Dynamo's inputs is: a ShardedTensor knows its own name. One of other ranks is gathered."""
    if not isinstance(value, ShardedTensor) or not value.mesh.same_as(mesh):
        return Source("input", name)
    kind = "parameter" if isinstance(value, torch.nn.Parameter) else "buffer"
    kind = "state" if value.qualified_name is None else kind
    return Source(kind, value.qualified_name or name, value.pinned)


def _fake(node: Node) -> Any:
    """The plain fake tensor, or size, that AOTAutograd shall trace with."""
    value = node.meta["example_value"]
    if isinstance(value, ShardedTensor):
        whole = value.full()
    elif isinstance(value, torch.Tensor) and isinstance(value._base, ShardedTensor):
        whole = value.new_empty_strided(value.shape, value.stride())  # a view that no plain tensor has
    else:
        return value
    return whole.requires_grad_(value.requires_grad) if value.requires_grad else whole
