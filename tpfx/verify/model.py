"""Whether a model that is split over devices computes what it computes undivided, and if not, where not.

    print(verify(model, 2, (ids,)))
    # on 2 devices: 1 graph, 143 nodes compared, 5 collectives: right

Every graph of one call is planned, written for each rank, checked, and run node by node on the CPU, undivided
and in the threads of ranks, with the model's own weights; `compare_runs` says how they are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule

from ..capture.aot import Compiled, Part, boxed, trace
from ..capture.capture import capture_error, training_mode
from ..capture.gradient_flow import GradientFlow
from ..capture.graph import Captured
from ..capture.inputs import Inputs, call_of, leave_sizes_open
from ..capture.sources import input_sources, is_tangent, on_leaves, weight_sources
from ..errors import InputError, ModelError
from ..ir.annotations import Source
from ..ir.nodes import hint_of
from ..ir.parallel_graph import ParallelGraph
from ..passes.lower import lower
from ..plan.offline import Planner
from ..planning import Topology
from ..runtime.mesh import Mesh
from ..runtime.thread_runtime import Runtime
from ..sharded_tensor import ShardedTensor
from ..torch_internals.dynamo import Settings, fresh
from ..torch_internals.dynamo_cache import capturing_for
from ..torch_internals.fx import tree_map_only
from .compare_runs import verify_graphs
from .findings import Finding
from .reference_run import clone_value

# Seconds that a rank waits for the others, where the checks have missed that they do not come.
TIMEOUT = 60.0


@dataclass
class Verification:
    """What came of a model's verification.

    Attributes:
        devices: how many devices the model was split over.
        graphs: how many graphs were planned; one call may run a graph several times, for several layers.
        nodes: how many nodes were compared in what it ran, and found right.
        collectives: how many collectives the ranks carry out in it.
        findings: what is wrong, in the order of the graphs; of differing values only the first of each graph.
    """

    devices: int
    graphs: int = 0
    nodes: int = 0
    collectives: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def __str__(self) -> str:
        counts = ((self.graphs, "graph"), (self.nodes, "node"), (self.collectives, "collective"))
        graphs, nodes, collectives = (f"{count} {what}{'s' * (count != 1)}" for count, what in counts)
        wrong = f"{len(self.findings)} finding{'s' * (len(self.findings) != 1)}"
        summary = f"on {self.devices} devices: {graphs}, {nodes} compared, {collectives}: "
        return "\n".join([summary + ("right" if self.right else wrong), *map(str, self.findings)])


def verify(
    model: torch.nn.Module,
    devices: int,
    inputs: Inputs | None = None,
    *,
    train: bool = False,
    symbolic: bool = True,
    topology: Topology | None = None,
) -> Verification:
    """Run one call of a model undivided and split over so many ranks on the CPU, and compare node by node.

    Args:
        model: a module with weights on the CPU, not compiled by tpfx; it is left as it was.
        devices: how many ranks to split it over.
        inputs: arguments (a tuple) or keyword arguments (a dict) of the call; a transformers model brings its
            own.
        train: verify the model in training mode, forward and backward, for random gradients of its results.
        symbolic: whether batch and length are left open in the plans.
        topology: what collectives and arithmetic cost.

    Raises:
        InputError: no inputs, or weights that are not on the CPU.
        ModelError: the model cannot be captured, or raises itself.

    >>> verify(model, 2, (ids,)).right
    True
    """
    planner = Planner(devices, topology)
    _require_weights(model)
    args, kwargs = tree_map_only(torch.Tensor, lambda value: _input(value, symbolic), call_of(model, inputs))
    mesh = Mesh((torch.device("cpu"),) * devices)
    verifier = _Verifier(Verification(devices), Runtime(mesh, TIMEOUT), planner, weight_sources(model))
    try:
        with (
            _left_as_it_was(model, train),
            torch.set_grad_enabled(train),
            Settings(model),
            capturing_for(verifier.compile),
        ):
            torch.compile(fresh(model.forward), backend=verifier.compile)(*args, **kwargs)
    except Exception as error:
        raise capture_error(model, error) from error
    finally:
        verifier.runtime.close()
    if not verifier.outcome.graphs:
        raise ModelError(f"{type(model).__name__} computes nothing with tensors: there is no graph to split")
    return verifier.outcome


def _require_weights(model: torch.nn.Module) -> None:
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(value, ShardedTensor):
            raise InputError(f"{name} is split already; verify the model before it is compiled")
        if value.device.type != "cpu":
            raise InputError(f"{name} is on {value.device}; a model is verified on the CPU, with weights")


def _input(value: torch.Tensor, symbolic: bool) -> torch.Tensor:
    value = value.detach().clone()
    if symbolic:
        leave_sizes_open(value)
    return value


@contextmanager
def _left_as_it_was(model: torch.nn.Module, train: bool) -> Iterator[None]:
    """Training mode or not for as long as this lasts; then modes, buffers, random numbers as before."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with training_mode(model, train), torch.random.fork_rng(devices=[]):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@dataclass
class _Verifier:
    """Verifies the graphs of one call, one after the other: a weight keeps its layout in later ones."""

    outcome: Verification
    runtime: Runtime
    planner: Planner
    weights: dict[int, Source]

    def compile(self, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Dynamo's backend: verify a graph when it is called."""
        return on_leaves(module, example_inputs, self._compile)

    def _compile(self, module: GraphModule, values: Sequence[Any]) -> Callable[..., Any]:
        return trace(module, input_sources(module, values, self.weights), _Graph(self))


@dataclass
class _Graph:
    """One of Dynamo's graphs: a copy of it is planned and lowered, and kept until the graph is called."""

    verifier: _Verifier
    captured: GraphModule | None = None
    parallel: ParallelGraph | None = None
    modules: Sequence[GraphModule] = ()

    def plan(self, graph: Captured) -> None:
        """Plan a copy, and keep another one to compare with; what the model itself runs is not planned."""
        planned = graph.copy()
        self.captured = graph.copy().module
        self.parallel = self.verifier.planner.plan(planned)
        self.modules = lower(self.parallel.graph, self.verifier.runtime.mesh, planned.module)
        self.verifier.outcome.graphs += 1

    def finish(self, lowered: GraphModule, part: Part) -> Compiled:
        """Verify a graph when it runs; a forward part with the backward part, which is never called here."""

        def forward(args: list[Any]) -> Any:
            copies = tree_map_only(torch.Tensor, clone_value, args)
            state = torch.get_rng_state()
            self._run([*copies, *self._tangents()])
            torch.set_rng_state(state)
            return lowered(*args)

        runs: dict[Part, Compiled] = {"whole": self._run, "forward": forward}
        return boxed(runs.get(part, lambda args: lowered(*args)))

    def differentiate(self, compiled: Compiled, flow: GradientFlow) -> Compiled:
        """The backward part is never called here."""
        return compiled

    def _run(self, args: list[Any]) -> Any:
        assert self.captured is not None and self.parallel is not None
        with torch.no_grad():
            replayed = verify_graphs(self.captured, self.parallel, self.modules, args, self.verifier.runtime)
        outcome = self.verifier.outcome
        outcome.nodes += replayed.nodes
        outcome.collectives += len(self.parallel.collectives())
        outcome.findings += [one for one in replayed.findings if one not in outcome.findings]
        return replayed.results

    def _tangents(self) -> Iterator[torch.Tensor]:
        """Random gradients of the results, of the sizes that these have in the call that was captured."""
        assert self.captured is not None
        generator = torch.Generator().manual_seed(0)
        for node in self.captured.graph.find_nodes(op="placeholder"):
            if is_tangent(node):
                value = node.meta["val"]
                shape = [hint_of(extent) for extent in value.shape]
                yield torch.randn(shape, generator=generator, dtype=value.dtype)
