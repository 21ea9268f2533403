"""Plan captured graphs without weights and without any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..capture.capture import capture
from ..capture.graph import Captured
from ..capture.inputs import Inputs
from ..errors import InputError
from ..ir.annotations import Source, is_gathered_for_caller, shards_of
from ..ir.nodes import is_tensor
from ..ir.parallel_graph import ParallelGraph
from ..ir.shards import Shards
from ..passes.pipeline import parallelize
from ..planning import Topology
from ..torch_internals.fake import unset_fake_temporarily


def plan_offline(
    model: torch.nn.Module,
    devices: int,
    inputs: Inputs | None = None,
    topology: Topology | None = None,
    *,
    symbolic: bool = True,
) -> ParallelGraph:
    """Plan the forward pass of a model without its weights, and without any device.

    Args:
        model: a module on any device, "meta" included; it is left as it was.
        devices: how many devices to split it over.
        inputs: arguments (a tuple) or keyword arguments (a dict) of one call; only dtypes and shapes
            count. A transformers model brings its own.
        topology: what collectives and arithmetic cost.
        symbolic: whether batch and length are left open in the plan.

    Returns:
        The parallel graph; the one with the most ops where the model makes several.

    Raises:
        ModelError: the model cannot be captured.
        InputError: no inputs, or of the wrong kind.

    >>> print(dump_text(plan_offline(model, 8)))
    """
    plans = plan_graphs(capture(model, inputs, symbolic=symbolic), devices, topology)
    return max(plans, key=lambda parallel: len(parallel.graph.nodes))


def plan_graphs(
    captured: Sequence[Captured], devices: int, topology: Topology | None = None
) -> list[ParallelGraph]:
    """Plan graphs of one model, in the order of capture: a weight keeps its layout in later ones, and so
    does what one graph keeps for another. The captured graphs stay as they are.

    Raises:
        InputError: fewer than one device.
    """
    planner, plans = Planner(devices, topology), list[ParallelGraph]()
    for one in captured:
        graph = one.copy()
        for at, (number, result) in one.kept.items():
            graph.sources[at] = _kept(graph.sources[at], plans[number], result)
        with unset_fake_temporarily():
            parallel = planner.plan(graph)
            if graph.joint is not None:
                graph.joint.parts(graph.module, parallel)
        plans.append(parallel)
    return plans


@dataclass
class Planner:
    """Plans the graphs of one model, one after the other: a weight keeps the layout that the first one chose.

    Attributes:
        devices: how many devices the model is split over.
        topology: what collectives and arithmetic cost.
        pinned: where the weights lie that a graph has used, by name.

    Raises:
        InputError: fewer than one device.
    """

    devices: int
    topology: Topology | None = None
    pinned: dict[str, Shards] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise InputError(f"cannot split a model over {self.devices} devices; name at least 1")

    def plan(self, graph: Captured) -> ParallelGraph:
        """Plan a captured graph in place."""
        sources = [
            replace(source, pinned=self.pinned.get(source.name)) if source.is_weight else source
            for source in graph.sources
        ]
        parallel = parallelize(graph.module.graph, sources, self.devices, self.topology)
        for node, source in zip(parallel.graph.find_nodes(op="placeholder"), sources, strict=True):
            if source.is_weight:
                self.pinned.setdefault(source.name, shards_of(node))
        return parallel


def _kept(source: Source, earlier: ParallelGraph, result: int) -> Source:
    """An input that an earlier graph has made: a tensor that is split inside, or a plain one."""
    node: Any = earlier.graph.output_node().args[0][result]  # type: ignore[index]
    layout = shards_of(node) if is_tensor(node) and not is_gathered_for_caller(node) else Shards()
    return replace(source, kind="state", pinned=layout) if layout else source
