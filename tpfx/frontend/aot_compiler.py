"""The compiler that Dynamo and AOTAutograd call with the graphs that they capture.

AOTAutograd sees plain tensors of full size and keeps handling mutation and aliasing; what it gets back takes
and returns sharded tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..capture.aot import settle_sources, trace
from ..capture.joint import Joint, mark_gradients
from ..execution.output_strides import Strides
from ..execution.program import Program, Ranks
from ..ir.annotations import Source, set_source, shards_of, source_of
from ..ir.parallel_graph import Parallel
from ..lowering.device_compiler import compile_for_devices
from ..passes.apply_plan import remember
from ..passes.pipeline import lower, parallelize
from ..runtime.mesh import Mesh
from ..runtime.processes import require_same
from ..sharded_tensor.tensor import ShardedTensor
from ..torch_internals.aot import aliased_outputs
from ..torch_internals.batch_guards import serves_any_batch
from ..torch_internals.dynamo import skip_frames
from ..torch_internals.fake import unset_fake_temporarily
from .session import Session

skip_frames("tpfx")


def compile_graph(session: Session, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Dynamo's backend: plan a graph, write one for each rank, return what runs them."""
    return _through_autograd(session, module, example_inputs, _Lowering)


def compile_for_any_batch(
    session: Session, module: GraphModule, example_inputs: Sequence[Any]
) -> Callable[..., Any]:
    """Dynamo's backend inside `open_batches`; it refuses graphs that do for some batches alone."""
    return _through_autograd(session, module, example_inputs, _LoweringForAnyBatch)


def plan_graph(session: Session, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Dynamo's backend while planning: choose layouts for the parameters, run nothing."""
    return _through_autograd(session, module, example_inputs, _Planning)


def _through_autograd(
    session: Session, module: GraphModule, example_inputs: Sequence[Any], compiler: type[_Planning]
) -> Callable[..., Any]:
    placeholders = module.graph.find_nodes(op="placeholder")
    sources = [_source(value, node.name) for value, node in zip(example_inputs, placeholders, strict=True)]
    return trace(module, compiler(session, sources, example_inputs), [_fake(node) for node in placeholders])


@dataclass
class _Planning:
    """Plans the graphs that AOTAutograd makes of one of Dynamo's; running one raises `Planned`."""

    session: Session
    sources: Sequence[Source]
    example_inputs: Sequence[Any]
    parallel: Parallel | None = None
    joint: bool = False
    backwards: bool = False
    captured: list[Any] = field(default_factory=list)  # the results as they were before any pass

    def inference(self, lowered: GraphModule) -> Callable[..., Any]:
        """Plan a graph without gradients."""
        self.captured = _results(lowered)
        self._parallelize(lowered)
        return self._finish(lowered)

    def partition(self, joint: GraphModule, results: int, **options: Any) -> tuple[GraphModule, GraphModule]:
        """Plan forward and backward as one, then part them; what is cheap to compute again is not saved."""
        self.captured, self.joint = _results(joint)[:results], True
        with unset_fake_temporarily():
            mark_gradients(joint.graph, results)
            parallel = self._parallelize(joint)
        forward, backward = Joint(results, options).parts(joint)
        first = {node.name for node in forward.graph.nodes}
        parallel.backward = frozenset(node.name for node in backward.graph.nodes) - first
        return forward, backward

    def forward(self, lowered: GraphModule) -> Callable[..., Any]:
        """The forward part of what `partition` has planned."""
        return self._finish(lowered)

    def backward(self, lowered: GraphModule) -> Callable[..., Any]:
        """The backward part: its results are the gradients of the inputs, laid out as those."""
        self.backwards = True
        held = [at for at, source in enumerate(self.sources) if source.kind != "input"]
        return self._finish(lowered, held)

    def _parallelize(self, lowered: GraphModule) -> Parallel:
        session, known = self.session, settle_sources(lowered, self.sources)
        parallel = parallelize(lowered.graph, known, session.mesh.size, session.topology, session.planned)
        self.parallel = session.newest = parallel
        require_same(session.mesh, "the graphs or plans", _plan_text(session.mesh, parallel))
        for op, count in parallel.whole_ops.items():
            session.whole_ops[op] = session.whole_ops.get(op, 0) + count
        self._distribute(parallel)
        return parallel

    def _distribute(self, parallel: Parallel) -> None:
        """Give parameters that had no layout the one that this graph chose."""
        placeholders = parallel.graph.find_nodes(op="placeholder")
        for node, value in zip(placeholders, self.example_inputs, strict=False):  # tangents come last
            if isinstance(value, ShardedTensor) and value.placement is None:
                layout = shards_of(node)
                value.distribute(layout)
                source = source_of(node)
                set_source(node, Source(source.kind, source.name, layout, source.mutated))

    def _finish(self, lowered: GraphModule, kept: Collection[int] = ()) -> Callable[..., Any]:
        def planned(args: list[Any]) -> Any:
            raise Planned

        planned._boxed_call = True  # type: ignore[attr-defined]
        return planned


class _Lowering(_Planning):
    """Plans, and writes a graph for each rank."""

    def inference(self, lowered: GraphModule) -> Callable[..., Any]:
        """Plan and lower a graph without gradients."""
        program = super().inference(lowered)
        self.session.graphs += 1
        return program

    def forward(self, lowered: GraphModule) -> Callable[..., Any]:
        """Lower the forward part; with the backward part it counts as one graph."""
        self.session.graphs += 1
        return super().forward(lowered)

    def _finish(self, lowered: GraphModule, kept: Collection[int] = ()) -> Callable[..., Any]:
        session = self.session
        modules = lower(lowered.graph, session.mesh, lowered)
        forwards = compile_for_devices(session.device_compiler, lowered.graph, modules, session.mesh)
        placeholders = lowered.graph.find_nodes(op="placeholder")
        views = frozenset() if self.backwards else aliased_outputs()
        exact = {at: Strides(self.captured[at], placeholders) for at in views}
        seen = None if self.backwards or not self.joint else len(self.captured)
        ranks = Ranks(session.runtime, modules, forwards)
        return Program(lowered.graph, ranks, kept, exact, seen, session.count_run)


class _LoweringForAnyBatch(_Lowering):
    """Lowers graphs that do for any number of rows."""

    def _parallelize(self, lowered: GraphModule) -> Parallel:
        if not serves_any_batch(node.meta["val"] for node in lowered.graph.find_nodes(op="placeholder")):
            raise SomeBatchesOnly("what was captured does for some batches alone")
        return super()._parallelize(lowered)


def _results(lowered: GraphModule) -> list[Any]:
    """The fake values that a graph returns."""
    returned: Sequence[Any] = lowered.graph.output_node().args[0]  # type: ignore[assignment]
    return [value.meta.get("val") if isinstance(value, Node) else value for value in returned]


def _plan_text(mesh: Mesh, parallel: Parallel) -> Iterator[bytes]:
    """What processes that run one graph together must agree on."""
    if mesh.group is not None:
        choices, units = remember(parallel.graph, parallel.splits)
        yield f"{parallel.fingerprint} {list(choices.values())} {units}".encode()


class Planned(Exception):
    """Ends a call that was only made for its plan."""


class SomeBatchesOnly(Exception):
    """Ends the capture of a graph that was to do for any number of rows."""


def _source(value: Any, name: str) -> Source:
    """What one of Dynamo's inputs is: a ShardedTensor knows its own name."""
    if not isinstance(value, ShardedTensor):
        return Source("input", name)
    kind = "parameter" if isinstance(value, torch.nn.Parameter) else "buffer"
    kind = "state" if value.qualified_name is None else kind
    return Source(kind, value.qualified_name or name, value.placement)


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
