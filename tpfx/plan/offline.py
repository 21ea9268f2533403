"""Plan captured graphs without weights and without any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..capture.capture import (
    Inputs,
    capture,
)
from ..capture.joint import mark_gradients
from ..capture.recorder import Captured
from ..errors import InputError
from ..ir.annotations import Source, is_joined, shards_of
from ..ir.nodes import copy_graph, is_tensor
from ..ir.parallel_graph import Parallel
from ..ir.shards import Shards
from ..passes.pipeline import parallelize
from ..planning.topology import Topology
from ..torch_internals.fake import unset_fake_temporarily


def plan_offline(
    model: torch.nn.Module,
    devices: int,
    inputs: Inputs | None = None,
    topology: Topology | None = None,
    *,
    symbolic: bool = True,
) -> Parallel:
    """Plan the forward pass of a model without its weights, and without any device.

    Args:
        model: a module on any device, "meta" included; it is left as it was.
        devices: how many devices to split it over.
        inputs: arguments (a tuple) or keyword arguments (a dict) of one call; only dtypes and shapes
            count. A transformers model brings its own.
        topology: what messages and arithmetic cost.
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
) -> list[Parallel]:
    """Plan graphs of one model, in the order of capture: a parameter keeps its layout in later ones, and so
    does what one graph keeps for another. The captured graphs stay as they are.

    Raises:
        InputError: fewer than one device.
    """
    if devices < 1:
        raise InputError(f"cannot split a model over {devices} devices; name at least 1")
    pinned: dict[str, Shards] = {}
    plans: list[Parallel] = []
    for one in captured:
        sources = [
            replace(source, pinned=pinned.get(source.name))
            if at not in one.kept
            else _kept(source, plans[one.kept[at][0]], one.kept[at][1])
            for at, source in enumerate(one.sources)
        ]
        with unset_fake_temporarily():
            parallel = _planned(one, sources, devices, topology)
        plans.append(parallel)
        for node, source in zip(parallel.graph.find_nodes(op="placeholder"), sources, strict=True):
            if source.is_weight:
                pinned.setdefault(source.name, shards_of(node))
    return plans


def _planned(one: Captured, sources: list[Source], devices: int, topology: Topology | None) -> Parallel:
    module = copy_graph(one.module)
    if one.joint is None:
        return parallelize(module.graph, sources, devices, topology)
    mark_gradients(module.graph, one.joint.results)
    parallel = parallelize(module.graph, sources, devices, topology)
    forward, backward = one.joint.parts(module)
    first = {node.name for node in forward.graph.nodes}
    parallel.backward = frozenset(node.name for node in backward.graph.nodes) - first
    return parallel


def _kept(source: Source, earlier: Parallel, result: int) -> Source:
    """An input that an earlier graph has made: a tensor that is split inside, or a plain one."""
    node: Any = earlier.graph.output_node().args[0][result]  # type: ignore[index]
    layout = shards_of(node) if is_tensor(node) and not is_joined(node) else Shards()
    return replace(source, kind="state", pinned=layout) if layout else source
