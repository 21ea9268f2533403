"""Make a `Plan` from a model or from graphs that have been captured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..capture.capture import capture
from ..capture.graph import Captured, Phase
from ..capture.inputs import Inputs
from ..console.logs import heed
from ..dump.node_names import Names
from ..errors import InputError
from ..ir.annotations import dims_of, shards_of, source_of
from ..ir.axes import show
from ..ir.parallel_graph import ParallelGraph
from ..ir.provenance import op_name
from ..passes.apply_plan import encode_choices
from ..planning import Topology
from ..planning.whole_weights import why_whole
from ..runtime.mesh import parse_devices
from ..version import __version__
from .estimate import estimate
from .generation import capture_generation
from .offline import plan_graphs
from .plan import (
    GraphPlan,
    OpPlan,
    Plan,
    WeightPlan,
    weights_of,
)


def plan(
    model: torch.nn.Module,
    devices: int | Sequence[Any] | None = None,
    example_inputs: Inputs | None = None,
    *,
    phase: Phase | None = None,
    topology: Topology | None = None,
    device_type: str | None = None,
) -> Plan:
    """Plan how a model would be split, without its weights and without any device.

    Args:
        model: a module on any device, "meta" included; it is left as it was.
        devices: how many, or a list with one for each rank; None for all visible GPUs.
        example_inputs: arguments (a tuple) or keyword arguments (a dict) of one call; only dtypes and shapes
            count. A transformers model brings its own, and one that generates is planned with the calls that
            its `generate` makes for those.
        phase: "prefill" for one call in inference; "decode" for the call after it as well, of one token with
            what the first has kept; "train" for forward and backward. None for "decode" where `generate` is
            planned, and else "prefill".
        topology: what collectives and arithmetic cost, for the chooser.
        device_type: whose kernels the graphs have, "cpu" or "cuda"; None for "cuda" where there is a GPU.
            A plan's weights are divided as it says anywhere; its graphs are carried out where the model's
            calls give graphs that are equal to them, kernels included, and chosen anew otherwise.

    Returns:
        The plan, which `compile(model, devices, plan=…)` takes.

    Raises:
        ModelError: the model cannot be captured.
        InputError: no inputs, or of the wrong kind; no devices; an unknown phase or type of device.

    >>> tpfx.plan(model, 8).save("plan.json")
    """
    heed()
    device = capture_device(device_type)
    if example_inputs is None:
        captured = capture_generation(model, None, phase=phase, device=device)
    else:
        captured = capture(model, example_inputs, phase=phase or "prefill", device=device)
    return plan_of(model, captured, count_of(devices), topology)


def capture_device(device_type: str | None) -> torch.device:
    """The device on which graphs with the kernels of a type of device are captured.

    Raises:
        InputError: an unknown type, or one that this build of torch has no kernels for.
    """
    if device_type is None:
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
    if device_type not in ("cpu", "cuda"):
        raise InputError(f"device_type={device_type!r} is neither 'cpu' nor 'cuda'")
    if device_type == "cuda" and not torch.backends.cuda.is_built():
        raise InputError(
            f"device_type='cuda': torch {torch.__version__} was built without CUDA and does not know which "
            "kernels a GPU would run; install a CUDA build of torch, or plan with device_type='cpu'"
        )
    return torch.device(device_type, 0) if device_type == "cuda" else torch.device("cpu")


def plan_of(
    model: torch.nn.Module, captured: Sequence[Captured], devices: int, topology: Topology | None = None
) -> Plan:
    """The plan of a model whose graphs have been captured."""
    topology = topology or Topology()
    return describe(model, captured, plan_graphs(captured, devices, topology), topology)


def describe(
    model: torch.nn.Module,
    captured: Sequence[Captured],
    parallels: Sequence[ParallelGraph],
    topology: Topology,
) -> Plan:
    """What has been planned, as a `Plan`; `parallels` are the planned `captured`."""
    weights = weights_of(model)
    for parallel in parallels:
        for name, weight in _weight_plans(parallel):
            if weights[name].shards is None:
                weights[name] = weight
    graphs = [
        _graph_plan(one.phase, parallel, topology, taken)
        for one, parallel, taken in zip(captured, parallels, handed_on(captured), strict=True)
    ]
    return Plan(type(model).__name__, parallels[0].ranks, weights, graphs, topology, __version__)


def handed_on(captured: Sequence[Captured]) -> list[list[int]]:
    """The results of each graph that later ones take."""
    taken = [result for one in captured for result in one.kept.values()]  # graph and result
    return [[at for which, at in taken if which == number] for number in range(len(captured))]


def count_of(devices: Any) -> int:
    """How many ranks a user means; the devices themselves need not be there.

    Raises:
        DeviceError: what is no list of devices.
    """
    count = devices if isinstance(devices, int) and not isinstance(devices, bool) else None
    if count is None and isinstance(devices, (list, tuple)):
        count = len(devices)
    if count is None and isinstance(devices, torch.distributed.DeviceMesh):
        count = devices.size(devices.mesh_dim_names.index("tp") if devices.ndim > 1 else 0)  # type: ignore[union-attr]
    if count is None:
        count = len(parse_devices(devices))
    return count


def _weight_plans(parallel: ParallelGraph) -> Iterable[tuple[str, WeightPlan]]:
    letters: dict[Any, str] = {}
    for node in parallel.graph.find_nodes(op="placeholder"):
        source = source_of(node)
        if source.is_weight:
            value = node.meta["val"]
            axes = show(dims_of(node), letters)
            dtype = str(value.dtype).removeprefix("torch.")
            shards = shards_of(node)
            reason = None if shards or parallel.ranks == 1 else why_whole(node, parallel.splits)
            why = reason.text if reason is not None and reason.forced else None
            yield source.name, WeightPlan(source.kind, list(value.shape), dtype, axes, shards, why)


def _graph_plan(
    phase: Phase, parallel: ParallelGraph, topology: Topology, handed_on: Sequence[int]
) -> GraphPlan:
    nodes = list(parallel.graph.nodes)
    names = Names(nodes, str)
    choices, units = encode_choices(parallel.graph, parallel.splits)
    ops = [
        OpPlan(names[node], node.op if node.op != "call_function" else op_name(node), choice)
        for node, choice in choices.items()
    ]
    named = {node.name: names[node] for node in nodes if node.op != "output"}
    collectives = [replace(one, node=named[one.node]) for one in parallel.collectives()]
    solution = parallel.solution
    return GraphPlan(
        phase,
        parallel.fingerprint,
        solution.optimal,
        solution.cost,
        units,
        ops,
        collectives,
        estimate(parallel, topology, handed_on),
    )
