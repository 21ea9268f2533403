"""Whether a model that is split over devices computes what it computes undivided, and if not, where not.

    print(verify(model, 2, (ids,)))
    # on 2 devices: 1 graph, 143 nodes compared, 5 messages: right

Every graph of one call is planned, written for each rank, checked, and run node by node on the CPU, undivided
and in the threads of ranks, with the model's own weights; `replay` says how they are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import GraphModule

from ..capture.aot import boxed, settle_sources, trace
from ..capture.capture import Inputs, call_of, capture_error, leave_sizes_open
from ..capture.joint import Joint, is_tangent, mark_gradients
from ..errors import InputError, ModelError
from ..ir.annotations import Source, shards_of
from ..ir.nodes import copy_graph, hint_of
from ..ir.parallel_graph import Parallel
from ..ir.shards import Shards
from ..passes.pipeline import lower, parallelize
from ..planning.topology import Topology
from ..runtime.mesh import Mesh
from ..runtime.thread_runtime import Runtime
from ..sharded_tensor.tensor import ShardedTensor
from ..torch_internals.dynamo import Settings, capturing_again, fresh
from ..torch_internals.fake import unset_fake_temporarily
from ..torch_internals.pytree import tree_map_only
from .compare_runs import verify_graphs
from .findings import Finding

TIMEOUT = (
    60.0  # seconds that a rank waits for the others, should the checks have missed that they do not come
)


@dataclass
class Verification:
    """What came of a model's verification.

    Attributes:
        devices: how many devices the model was split over.
        graphs: how many graphs were planned; one call may run a graph several times, for several layers.
        nodes: how many nodes were compared in what it ran, and found right.
        messages: how many collectives the ranks carry out in it.
        findings: what is wrong, in the order of the graphs; of differing values only the first of each graph.
    """

    devices: int
    graphs: int = 0
    nodes: int = 0
    messages: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def __str__(self) -> str:
        counts = ((self.graphs, "graph"), (self.nodes, "node"), (self.messages, "message"))
        graphs, nodes, messages = (f"{count} {what}{'s' * (count != 1)}" for count, what in counts)
        wrong = f"{len(self.findings)} finding{'s' * (len(self.findings) != 1)}"
        summary = f"on {self.devices} devices: {graphs}, {nodes} compared, {messages}: "
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
        topology: what messages and arithmetic cost.

    Raises:
        InputError: no inputs, or weights that are not on the CPU.
        ModelError: the model cannot be captured, or raises itself.

    >>> verify(model, 2, (ids,)).right
    True
    """
    if devices < 1:
        raise InputError(f"cannot split a model over {devices} devices; name at least 1")
    _require_weights(model)
    args, kwargs = tree_map_only(torch.Tensor, lambda value: _input(value, symbolic), call_of(model, inputs))
    mesh = Mesh((torch.device("cpu"),) * devices)
    verifier = _Verifier(Verification(devices), Runtime(mesh, TIMEOUT), topology, _sources(model))
    try:
        with (
            _left_as_it_was(model, train),
            torch.set_grad_enabled(train),
            Settings(model),
            capturing_again(),
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


def _sources(model: torch.nn.Module) -> dict[int, Source]:
    """What each parameter and buffer is, by its id."""
    sources: dict[int, Source] = {}
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, value in named:
            sources.setdefault(id(value), Source(kind, name))
    return sources


@contextmanager
def _left_as_it_was(model: torch.nn.Module, train: bool) -> Iterator[None]:
    """Training mode or not for as long as this lasts; then modes, buffers, random numbers as before."""
    training = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        model.train(train)
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@dataclass
class _Verifier:
    """Verifies the graphs of one call, one after the other: a parameter keeps its layout in later ones."""

    outcome: Verification
    runtime: Runtime
    topology: Topology | None
    sources: dict[int, Source]
    pinned: dict[str, Shards] = field(default_factory=dict)

    def compile(self, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Dynamo's backend: verify a graph when it is called."""
        placeholders = module.graph.find_nodes(op="placeholder")
        known = [
            self.sources.get(id(value), Source("input", node.name))
            for node, value in zip(placeholders, example_inputs, strict=True)
        ]
        return trace(module, _Graph(self, known), [node.meta["example_value"] for node in placeholders])

    def parallelize(self, lowered: GraphModule, sources: Sequence[Source]) -> Parallel:
        """Plan a graph, and remember where the weights lie."""
        known = [replace(one, pinned=self.pinned.get(one.name)) for one in settle_sources(lowered, sources)]
        parallel = parallelize(lowered.graph, known, self.runtime.mesh.size, self.topology)
        for node, source in zip(parallel.graph.find_nodes(op="placeholder"), known, strict=True):
            if source.is_weight:
                self.pinned.setdefault(source.name, shards_of(node))
        self.outcome.graphs += 1
        return parallel


@dataclass
class _Graph:
    """One of Dynamo's graphs: what AOTAutograd makes of it is planned and kept until it is called."""

    verifier: _Verifier
    sources: Sequence[Source]
    captured: GraphModule | None = None
    parallel: Parallel | None = None
    modules: Sequence[GraphModule] = ()

    def inference(self, lowered: GraphModule) -> Callable[..., Any]:
        """A graph without gradients."""
        self._plan(lowered)
        return boxed(self._run)

    def partition(self, joint: GraphModule, results: int, **options: Any) -> tuple[GraphModule, GraphModule]:
        """Plan forward and backward as one; what the model itself runs are the parts of an unplanned copy."""
        whole = copy_graph(joint)
        with unset_fake_temporarily():
            mark_gradients(joint.graph, results)
            self._plan(joint)
        return Joint(results, options).parts(whole)

    def forward(self, lowered: GraphModule) -> Callable[..., Any]:
        """The forward part: before it runs, it is verified together with the backward part."""

        def run(args: list[Any]) -> Any:
            copies = tree_map_only(torch.Tensor, lambda value: value.detach().clone(), args)
            state = torch.get_rng_state()
            self._run([*copies, *self._tangents()])
            torch.set_rng_state(state)
            return lowered(*args)

        return boxed(run)

    def backward(self, lowered: GraphModule) -> Callable[..., Any]:
        """The backward part, which nobody calls here."""
        return boxed(lambda args: lowered(*args))

    def _plan(self, lowered: GraphModule) -> None:
        self.captured = copy_graph(lowered)
        self.parallel = self.verifier.parallelize(lowered, self.sources)
        self.modules = lower(lowered.graph, self.verifier.runtime.mesh, lowered)

    def _run(self, args: list[Any]) -> Any:
        assert self.captured is not None and self.parallel is not None
        with torch.no_grad():
            replayed = verify_graphs(self.captured, self.parallel, self.modules, args, self.verifier.runtime)
        outcome = self.verifier.outcome
        outcome.nodes += replayed.nodes
        outcome.messages += len(self.parallel.collectives())
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
