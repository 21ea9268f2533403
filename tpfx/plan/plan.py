"""A plan: how each weight is split and how each op is carried out, as a file that `compile` takes.

    plan = tpfx.plan(model, 8)                    # the model may be on the meta device
    plan.save("llama-8.json")
    model = tpfx.compile(model, 8, plan="llama-8.json")

The file is JSON, of this schema (version 1):

    schema      1
    tpfx        the version that wrote it
    model       the class of the model
    devices     how many ranks
    topology    what messages and arithmetic cost, see `Topology`
    weights     name → kind ("parameter" or "buffer"), shape, dtype, axes (as in dumps), and shards: for each
                dimension that is split, [dimension, for each rank its intervals]; null: no graph uses it
    graphs      one for each captured graph, in order:
        phase         "prefill", "decode" or "train"
        fingerprint   tells the graph; a graph that has it is carried out as `ops` say
        optimal, cost whether the choice is proven cheapest, and the seconds that the chooser predicts
        units         split → how many of its units each rank has
        ops           name, op and choice of each, in order; see tpfx/passes/recall.py
        collectives   kind, bytes, node and phase of each message
        estimate      see `Estimate`
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from .annotations import dims_of, source_of
from .axes import show
from .capture import Inputs, capture, plan_graphs
from .captures import Captured, Phase
from .elimination import Solution
from .errors import InputError, PlanError
from .estimate import Estimate, estimate
from .layout import Shards
from .mesh import parse_devices
from .names import Names, op_name
from .passes.recall import remember
from .pipeline import Collective, Parallel
from .program import shards_of
from .slots import slots_of
from .topology import Topology

SCHEMA = 1


@dataclass(frozen=True)
class WeightPlan:
    """What becomes of a parameter or buffer.

    Attributes:
        kind: "parameter" or "buffer".
        shape: the unsharded one.
        dtype: as torch names it, "bfloat16".
        axes: what each dimension is made of, as in a dump: "(a:8 b:128)".
        shards: what each rank holds; None where no graph uses it, and it stays whole on the first rank.
    """

    kind: str
    shape: list[int]
    dtype: str
    axes: list[str] = field(default_factory=list)
    shards: Shards | None = None

    @property
    def bytes(self) -> int:
        """Those of the unsharded weight."""
        size: int = getattr(torch, self.dtype).itemsize
        for extent in self.shape:
            size *= extent
        return size

    def on_rank(self, rank: int) -> int:
        """The bytes that a rank holds."""
        if self.shards is None:
            return self.bytes if rank == 0 else 0
        held = self.bytes
        for dim, owned in self.shards.dims:
            held = held // max(1, self.shape[dim]) * sum(stop - start for start, stop in owned[rank])
        return held


@dataclass(frozen=True)
class OpPlan:
    """How an op is carried out: its name, as in a dump, the op, and the choice."""

    name: str
    op: str
    choice: str


@dataclass(frozen=True)
class GraphPlan:
    """How one graph is carried out; see the schema above."""

    phase: Phase
    fingerprint: str
    optimal: bool
    cost: float
    units: dict[int, list[int]]
    ops: list[OpPlan]
    collectives: list[Collective]
    estimate: Estimate

    @property
    def choices(self) -> list[str]:
        """The choices alone."""
        return [op.choice for op in self.ops]

    @property
    def solution(self) -> Solution:
        """What was proved of them."""
        return Solution([], self.cost, self.cost if self.optimal else 0.0, self.optimal, 0)


@dataclass(frozen=True)
class Plan:
    """How a model is split over devices. `str(plan)` is a table; see the schema above.

    Attributes:
        model: the class of the model.
        devices: how many ranks.
        weights: what becomes of each parameter and buffer, by its name; tied ones once.
        graphs: how each captured graph is carried out.
        topology: what messages and arithmetic were taken to cost.
        tpfx: the version of tpfx.
    """

    model: str
    devices: int
    weights: dict[str, WeightPlan]
    graphs: list[GraphPlan]
    topology: Topology
    tpfx: str

    @property
    def bytes_per_device(self) -> list[int]:
        """Bytes of parameters and buffers on each device, in the order of the ranks."""
        return [sum(weight.on_rank(rank) for weight in self.weights.values()) for rank in range(self.devices)]

    @property
    def total_bytes(self) -> int:
        """Bytes of the unsharded parameters and buffers."""
        return sum(weight.bytes for weight in self.weights.values())

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(self.to_json())

    def to_json(self) -> str:
        """The plan as JSON, one line for each weight and each op; the same for equal plans."""
        return written({"schema": SCHEMA, **_json_of(self)})

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read what `save` has written.

        Raises:
            PlanError: there is no such file, or it is no plan.
        """
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"cannot read the plan {path}: {error}") from error
        try:
            return Plan.of_json(text)
        except PlanError as error:
            raise PlanError(f"{path} is not a plan that this tpfx can read: {error}") from error

    @staticmethod
    def of_json(text: str) -> Plan:
        """Read what `to_json` has written.

        Raises:
            PlanError: it is no plan.
        """
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"it is not JSON: {error}") from error
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            schema = found.get("schema") if isinstance(found, dict) else None
            raise PlanError(f"its schema is {schema}, not {SCHEMA}; write it anew with tpfx plan")
        try:
            return _plan_of(found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"a part of it is missing or wrong: {type(error).__name__}: {error}") from error

    def require(self, model: torch.nn.Module, devices: int) -> None:
        """See that the plan is for this model, so many devices and this version of tpfx.

        Raises:
            PlanError: it is for others; the difference is named.
        """
        from . import __version__

        if self.tpfx != __version__:
            raise PlanError(f"the plan was made by tpfx {self.tpfx}, this is {__version__}; make it anew")
        if self.devices != devices:
            raise PlanError(
                f"the plan is for {self.devices} devices, not for {devices}; make one with {devices}"
            )
        mine = weights_of(model)
        for name in [*self.weights, *mine]:
            have, want = mine.get(name), self.weights.get(name)
            if have is None or want is None:
                where = "the plan" if want is None else type(model).__name__
                raise PlanError(f"the plan is for another model, {self.model}: {where} has no {name}")
            if (have.shape, have.dtype) != (want.shape, want.dtype):
                raise PlanError(
                    f"the plan is for another model, {self.model}: there {name} is {want.dtype} "
                    f"{want.shape}, here it is {have.dtype} {have.shape}"
                )

    def __str__(self) -> str:
        from .plan_tables import summary  # it reads this module

        return summary(self)


def plan(
    model: torch.nn.Module,
    devices: int | Sequence[Any] | None = None,
    example_inputs: Inputs | None = None,
    *,
    phase: Phase = "prefill",
    topology: Topology | None = None,
) -> Plan:
    """Plan how a model would be split, without its weights and without any device.

    Args:
        model: a module on any device, "meta" included; it is left as it was.
        devices: how many, or a list with one for each rank; None for all visible GPUs.
        example_inputs: arguments (a tuple) or keyword arguments (a dict) of one call; only dtypes and shapes
            count. A transformers model brings its own.
        phase: "prefill" for one call in inference; "decode" for the call after it as well, of one token with
            what the first has kept; "train" for forward and backward.
        topology: what messages and arithmetic cost, for the chooser.

    Returns:
        The plan, which `compile(model, devices, plan=…)` takes.

    Raises:
        ModelError: the model cannot be captured.
        InputError: no inputs, or of the wrong kind; no devices; an unknown phase.

    >>> tpfx.plan(model, 8).save("plan.json")
    """
    captured = capture(model, example_inputs, phase=phase)
    return plan_of(model, captured, count_of(devices), topology)


def plan_of(
    model: torch.nn.Module, captured: Sequence[Captured], devices: int, topology: Topology | None = None
) -> Plan:
    """The plan of a model whose graphs have been captured."""
    topology = topology or Topology()
    return describe(model, captured, plan_graphs(captured, devices, topology), topology)


def describe(
    model: torch.nn.Module, captured: Sequence[Captured], parallels: Sequence[Parallel], topology: Topology
) -> Plan:
    """What has been planned, as a `Plan`; `parallels` are the planned `captured`."""
    from . import __version__

    weights = weights_of(model)
    for parallel in parallels:
        for name, planned in _weight_plans(parallel):
            if weights[name].shards is None:
                weights[name] = planned
    graphs = [
        _graph_plan(one.phase, parallel, topology) for one, parallel in zip(captured, parallels, strict=True)
    ]
    return Plan(type(model).__name__, parallels[0].ranks, weights, graphs, topology, __version__)


def count_of(devices: Any) -> int:
    """How many ranks a user means; the devices themselves need not be there.

    Raises:
        InputError: none at all, or what is no list of devices.
    """
    count = devices if isinstance(devices, int) and not isinstance(devices, bool) else None
    if count is None and isinstance(devices, (list, tuple)):
        count = len(devices)
    if count is None and isinstance(devices, torch.distributed.DeviceMesh):
        count = devices.size(devices.mesh_dim_names.index("tp") if devices.ndim > 1 else 0)  # type: ignore[union-attr]
    if count is None:
        count = len(parse_devices(devices))
    if count < 1:
        raise InputError(f"cannot split a model over {count} devices; name at least 1")
    return count


def weights_of(model: torch.nn.Module) -> dict[str, WeightPlan]:
    """The parameters and buffers of a model, tied ones once, as yet without shards."""
    found: dict[str, WeightPlan] = {}
    seen: set[int] = set()
    for slot in slots_of(model):
        value = slot.value
        if id(value) not in seen:
            seen.add(id(value))
            kind = "parameter" if isinstance(value, torch.nn.Parameter) else "buffer"
            found[slot.name] = WeightPlan(kind, list(value.shape), str(value.dtype).removeprefix("torch."))
    return found


def _weight_plans(parallel: Parallel) -> Iterable[tuple[str, WeightPlan]]:
    letters: dict[Any, str] = {}
    for node in parallel.graph.find_nodes(op="placeholder"):
        source = source_of(node)
        if source.kind in ("parameter", "buffer"):
            value = node.meta["val"]
            axes = show(dims_of(node), letters)
            dtype = str(value.dtype).removeprefix("torch.")
            yield source.name, WeightPlan(source.kind, list(value.shape), dtype, axes, shards_of(node))


def _graph_plan(phase: Phase, parallel: Parallel, topology: Topology) -> GraphPlan:
    nodes = list(parallel.graph.nodes)
    names = Names(nodes, str)
    choices, units = remember(parallel.graph, parallel.splits)
    ops = [
        OpPlan(names[node], node.op if node.op != "call_function" else op_name(node), choice)
        for node, choice in choices.items()
    ]
    named = {node.name: names[node] for node in nodes if node.op != "output"}
    messages = [replace(message, node=named[message.node]) for message in parallel.collectives()]
    solution = parallel.solution
    return GraphPlan(
        phase,
        parallel.fingerprint,
        solution.optimal,
        solution.cost,
        units,
        ops,
        messages,
        estimate(parallel, topology),
    )


# To JSON and back.


def _json_of(plan: Plan) -> dict[str, Any]:
    weights = {
        name: {**plain(weight), "shards": None if weight.shards is None else weight.shards.dims}
        for name, weight in plan.weights.items()
    }
    graphs = [
        {
            **plain(graph),
            "ops": [asdict(op) for op in graph.ops],
            "collectives": [asdict(message) for message in graph.collectives],
            "estimate": asdict(graph.estimate),
        }
        for graph in plan.graphs
    ]
    return {**plain(plan), "topology": asdict(plan.topology), "weights": weights, "graphs": graphs}


def plain(value: Any) -> dict[str, Any]:
    return {one.name: getattr(value, one.name) for one in fields(value)}


def written(value: Any, indent: str = "") -> str:
    """JSON in which whatever is short has a line of its own."""
    line = json.dumps(value)
    if len(line) < 120 or not isinstance(value, (dict, list, tuple)):
        return line
    inner = indent + " "
    if isinstance(value, dict):
        items = [f"{json.dumps(str(key))}: {written(item, inner)}" for key, item in value.items()]
        opening, closing = "{", "}"
    else:
        items = [written(item, inner) for item in value]
        opening, closing = "[", "]"
    return opening + "\n" + ",\n".join(inner + item for item in items) + "\n" + indent + closing


def _plan_of(found: Mapping[str, Any]) -> Plan:
    return Plan(
        model=str(found["model"]),
        devices=int(found["devices"]),
        weights={name: _weight_of(one) for name, one in found["weights"].items()},
        graphs=[_graph_of(one) for one in found["graphs"]],
        topology=Topology(**found["topology"]),
        tpfx=str(found["tpfx"]),
    )


def _weight_of(found: Mapping[str, Any]) -> WeightPlan:
    shards = found["shards"]
    if shards is not None:
        dims = [
            (int(dim), tuple(tuple((int(a), int(b)) for a, b in own) for own in owned))
            for dim, owned in shards
        ]
        shards = Shards(tuple(dims))
    return WeightPlan(**{**found, "shards": shards})


def _graph_of(found: Mapping[str, Any]) -> GraphPlan:
    return GraphPlan(
        **{
            **found,
            "units": {int(split): sizes for split, sizes in found["units"].items()},
            "ops": [OpPlan(**op) for op in found["ops"]],
            "collectives": [Collective(**message) for message in found["collectives"]],
            "estimate": Estimate(**found["estimate"]),
        }
    )
