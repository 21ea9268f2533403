"""The compiler that Dynamo and AOTAutograd call with the graphs that they capture.

AOTAutograd sees plain tensors of full size and keeps handling mutation and aliasing; what it gets back takes
and returns sharded tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..capture.aot import Compiled, Part, trace, trace_module
from ..capture.derivatives import Asked, Autocast, GradientsOf
from ..capture.gradient_flow import GradientFlow
from ..capture.graph import Captured, require_any_batch
from ..console.progress import working
from ..execution.gradients import Trained
from ..execution.output_strides import Strides
from ..execution.program import Program
from ..execution.ranks import Planned, Ranks
from ..ir.annotations import Source, gradients_in, set_gradients, set_source, shards_of, source_of
from ..ir.parallel_graph import ParallelGraph
from ..lowering.device_compiler import compile_for_devices
from ..native.rank_program import RankProgram
from ..passes.apply_plan import encode_choices
from ..passes.lower import lower
from ..passes.pipeline import parallelize
from ..planning.whole_weights import why_whole
from ..runtime.mesh import Mesh
from ..runtime.processes import require_same
from ..sharded_tensor import ShardedTensor
from ..torch_internals.aot import aliased_outputs, tracing_alone
from ..torch_internals.distributed import outside_traces
from ..torch_internals.dynamo_cache import collector_waiting
from ..torch_internals.fake import FakeTensorMode
from ..workers.worker_runtime import WorkerRuntime
from .session import Session


def compile_graph(session: Session, module: GraphModule, example_inputs: Sequence[Any]) -> Compiled:
    """Dynamo's backend: plan a graph, write one for each rank, return what runs them."""
    return _traced(module, _Lowering(session, example_inputs, module))


def compile_for_any_batch(session: Session, module: GraphModule, example_inputs: Sequence[Any]) -> Compiled:
    """Dynamo's backend inside `open_batches`; it refuses graphs that do for some batches alone."""
    return _traced(module, _LoweringForAnyBatch(session, example_inputs, module))


def compile_graph_later(session: Session, module: GraphModule, example_inputs: Sequence[Any]) -> Compiled:
    """Dynamo's backend while a later call is planned: plan a graph, write those of the ranks when it runs."""
    return _traced(module, _LoweringLater(session, example_inputs, module))


def _traced(module: GraphModule, use: _Lowering) -> Compiled:
    placeholders = module.graph.find_nodes(op="placeholder")
    mesh = use.session.mesh
    sources = [_source(value, node.name, mesh) for value, node in zip(use.inputs, placeholders, strict=True)]
    return trace(module, sources, use, _fake)


@dataclass
class _Lowering:
    """Plans a graph, and writes one for each rank."""

    session: Session
    inputs: Sequence[Any]  # those that Dynamo gives as examples, with the weights
    module: torch.nn.Module  # what is lowered
    results: Sequence[Any] = ()  # fake values of the model's results, as they were before any pass

    def plan(self, graph: Captured) -> ParallelGraph:
        """Plan a graph, and divide its weights once the other processes have planned the same."""
        self.results = graph.results()
        session = self.session
        lowered, ranks = graph.module.graph, session.mesh.size
        known = session.choices, session.kept
        parallel = parallelize(lowered, graph.sources, ranks, session.topology, *known)
        require_same(session.mesh, "the graphs or plans", _plan_text(session.mesh, parallel))
        session.note_planned(parallel)
        with working("dividing weights"):
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
        """What runs a graph, or a part: results of the backward one are gradients, laid out as its inputs."""
        return self._program(lowered, part, frozenset() if part == "backward" else aliased_outputs())

    def _program(self, lowered: GraphModule, part: Part, views: frozenset[int]) -> Program:
        session, backward = self.session, part == "backward"
        modules = lower(lowered.graph, session.mesh, lowered)
        forwards = self._forwards(lowered.graph, modules)
        if isinstance(forwards[0], RankProgram):
            session.note_python(forwards[0].in_python.values())
        elif session.device_compiler == "native":
            session.device_compiler = "eager"  # the report says what runs
        placeholders = lowered.graph.find_nodes(op="placeholder")
        exact = {at: Strides(self.results[at], placeholders) for at in views}
        seen = len(self.results) if part == "forward" else None
        kept = self._kept(backward)
        session.graphs += not backward  # forward and backward count as one graph
        recording = session.recording_of(lowered.graph, gradients=part != "whole")
        planned = Planned(lowered.graph, "backward" if backward else "forward", session.topology)
        ranks = Ranks(session.runtime, modules, forwards, recording, planned)
        return Program(lowered.graph, ranks, kept, exact, seen, session.count_run)

    def _forwards(self, parallel: Graph, modules: Sequence[GraphModule]) -> list[Any]:
        """What runs the graph of each rank: here, or in its process."""
        runtime, name = self.session.runtime, self.session.device_compiler
        if not isinstance(runtime, WorkerRuntime):
            return [*compile_for_devices(name, parallel, modules, runtime.mesh, runtime.native_meeting)]
        away = runtime.programs(name, modules[1:])
        return [
            *compile_for_devices(name, parallel, modules[:1], runtime.here, runtime.native_meeting),
            *away,
        ]

    def _kept(self, backward: bool) -> list[int]:
        """The results that stay sharded tensors: gradients of those."""
        return [at for at, value in enumerate(self.inputs) if isinstance(value, ShardedTensor) and backward]

    def differentiate(self, compiled: Compiled, flow: GradientFlow) -> Compiled:
        """What runs a joint graph, and goes on where autograd asks for gradients of its gradients."""
        device = self.session.mesh.devices[self.session.mesh.owned[0]]
        derive = partial(_derivative, self.session, self.module, Autocast(device.type))
        return Trained(compiled, flow, device, derive)


class _LoweringLater(_Lowering):
    """Plans, and writes a graph for each rank when the graph is first run."""

    def finish(self, lowered: GraphModule, part: Part) -> Compiled:
        """What runs a graph; while the session only plans, it ends the call."""
        return _Later(self.session, partial(self._program, lowered, part, aliased_outputs()))


class _Later:
    """A program that is made at its first run; while the session only plans, a run ends the call."""

    _boxed_call = True

    def __init__(self, session: Session, make: Callable[[], Program]) -> None:
        self._session, self._make = session, make
        self._program: Program | None = None
        self._making = threading.Lock()

    def __call__(self, args: list[Any]) -> list[Any]:
        """What the program returns."""
        program = self._program
        return (self._made() if program is None else program)(args)

    def _made(self) -> Program:
        if self._session.only_plans:
            raise LayoutsChosen
        with self._making, collector_waiting():  # threads may make a first call at once
            if self._program is None:
                self._program = self._make()
                del self._make
            return self._program


class _LoweringForAnyBatch(_Lowering):
    """Lowers graphs that do for any number of rows."""

    def plan(self, graph: Captured) -> ParallelGraph:
        """Plan a graph, but none whose guards mind the number of rows."""
        require_any_batch(graph)
        return super().plan(graph)


class _LoweringGradients(_Lowering):
    """Lowers what computes gradients: they lie as the inputs do whose gradients they are."""

    module: GradientsOf

    def plan(self, graph: Captured) -> ParallelGraph:
        """Plan a graph that returns gradients."""
        output, inputs = graph.module.graph.output_node(), graph.module.graph.find_nodes(op="placeholder")
        returned: Sequence[Any] = output.args[0]  # type: ignore[assignment]
        gradients = {
            at: inputs[which] for at, which in enumerate(self._whose()) if isinstance(returned[at], Node)
        }
        set_gradients(output, {**gradients_in(output), **gradients})
        return super().plan(graph)

    def _whose(self) -> list[int]:
        """The input of the lowered graph whose gradient each of the first results is."""
        return [self.module.tensors.index(at) for at in self.module.wanted]

    def _kept(self, backward: bool) -> list[int]:
        if backward:
            return super()._kept(backward)
        return [at for at, which in enumerate(self._whose()) if isinstance(self.inputs[which], ShardedTensor)]


def _derivative(
    session: Session, module: torch.nn.Module, autocast: Autocast, asked: Asked, values: Sequence[Any]
) -> Compiled:
    """What computes gradients of a graph from these values; see `GradientsOf`."""
    gradients = GradientsOf(module, autocast, asked, values)
    tensors = [values[at] for at in gradients.tensors]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    use = _LoweringGradients(session, tensors, gradients)
    sources = [_source(value, f"input_{at}", session.mesh) for at, value in enumerate(tensors)]
    fakes = [_fake_like(value, mode, asked.history) for value in tensors]
    with tracing_alone(mode):
        compiled = trace_module(gradients, fakes, sources, use)

    def run(*values: Any) -> Any:
        return compiled(*(values[at] for at in gradients.tensors))

    return run


def _fake_like(value: torch.Tensor, mode: FakeTensorMode, history: bool) -> torch.Tensor:
    with mode:
        fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return fake.requires_grad_(value.requires_grad and history)


def _plan_text(mesh: Mesh, parallel: ParallelGraph) -> Iterator[bytes]:
    """What processes that run one graph together must agree on."""
    if mesh.group is not None:
        choices, units = encode_choices(parallel.graph, parallel.splits)
        yield f"{parallel.fingerprint} {list(choices.values())} {units}".encode()


class LayoutsChosen(Exception):
    """Ends a call that was only made to choose layouts for the weights."""


def _source(value: Any, name: str, mesh: Mesh) -> Source:
    """What one of Dynamo's inputs is: a ShardedTensor knows its own name. One of other ranks is gathered."""
    if not isinstance(value, ShardedTensor) or not value.mesh.same_as(mesh):
        return Source("input", name)
    kind = "state" if value.qualified_name is None else value.weight_kind
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
