"""The compiler that Dynamo and AOTAutograd call with the graphs that they capture.

AOTAutograd sees plain tensors of full size and keeps handling mutation and aliasing; what it gets back takes
and
returns sharded tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .annotations import Source, set_source, source_of
from .mesh import Mesh
from .pipeline import Parallel, lower, parallelize
from .program import Program, shards_of
from .runtime import Runtime
from .tensor import ShardedTensor
from .topology import Topology
from .torch_compiler import skip_frames
from .trace import settle_sources, trace

skip_frames(__package__)


@dataclass
class Session:
    """What the graphs of one compiled model share.

    Attributes:
        mesh: the devices.
        runtime: the threads that run the ranks.
        topology: what messages cost.
        graphs: how many graphs have been compiled.
        newest: the newest parallel graph, or that of the plan while nothing has run.
        whole_ops: ops that ran whole for want of a rule, in all graphs.
    """

    mesh: Mesh
    runtime: Runtime
    topology: Topology = field(default_factory=Topology)
    graphs: int = 0
    newest: Parallel | None = None
    whole_ops: dict[str, int] = field(default_factory=dict)

    def compile(self, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Dynamo's backend: plan a graph, write one for each rank, return what runs them."""
        return self._through_autograd(module, example_inputs, self._lower)

    def plan(self, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Dynamo's backend while planning: choose layouts for the parameters, run nothing."""
        return self._through_autograd(module, example_inputs, self._give_up)

    def _through_autograd(
        self,
        module: GraphModule,
        example_inputs: Sequence[Any],
        finish: Callable[[Parallel, GraphModule], Callable[..., Any]],
    ) -> Callable[..., Any]:
        placeholders = module.graph.find_nodes(op="placeholder")
        sources = [
            _source(value, node.name) for value, node in zip(example_inputs, placeholders, strict=True)
        ]

        def parallelized(lowered: GraphModule) -> Callable[..., Any]:
            parallel = self._parallelize(lowered, sources)
            self._distribute(parallel, example_inputs)
            return finish(parallel, lowered)

        return trace(module, parallelized, [_fake(node) for node in placeholders])

    def _parallelize(self, lowered: GraphModule, sources: Sequence[Source]) -> Parallel:
        known = settle_sources(lowered, sources)
        parallel = parallelize(lowered.graph, known, self.mesh.size, self.topology)
        self.newest = parallel
        for op, count in parallel.whole_ops.items():
            self.whole_ops[op] = self.whole_ops.get(op, 0) + count
        return parallel

    def _distribute(self, parallel: Parallel, example_inputs: Sequence[Any]) -> None:
        """Give parameters that had no layout the one that this graph chose."""
        for node, value in zip(parallel.graph.find_nodes(op="placeholder"), example_inputs, strict=True):
            if isinstance(value, ShardedTensor) and value.placement is None:
                layout = shards_of(node)
                value.distribute(layout)
                source = source_of(node)
                set_source(node, Source(source.kind, source.name, layout, source.mutated))

    def _lower(self, parallel: Parallel, captured: GraphModule) -> Program:
        self.graphs += 1
        return Program(parallel, lower(parallel, self.mesh, captured), self.runtime)

    def _give_up(self, parallel: Parallel, captured: GraphModule) -> Callable[..., Any]:
        def planned(args: list[Any]) -> Any:
            raise Planned

        planned._boxed_call = True  # type: ignore[attr-defined]
        return planned


class Planned(Exception):
    """Ends a call that was only made for its plan."""


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
