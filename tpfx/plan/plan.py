"""A plan: how each weight is split and how each op is carried out, as a file that `compile` takes.

    plan = tpfx.plan(model, 8)                    # the model may be on the meta device
    plan.save("llama-8.json")
    model = tpfx.compile(model, 8, plan="llama-8.json")

The file is JSON, of this schema (version 1):

    schema      1
    tpfx        the version that wrote it
    model       the class of the model
    devices     how many ranks
    topology    what collectives and arithmetic cost, see `Topology`
    weights     name → kind ("parameter" or "buffer"), shape, dtype, axes (as in dumps), and shards: for each
                dimension that is split, [dimension, for each rank its intervals]; null: no graph uses it; and
                why: where an op needs the whole of it, which
    graphs      one for each captured graph, in order:
        phase         "prefill", "decode" or "train"
        fingerprint   tells the graph; a graph that has it is carried out as `ops` say
        optimal, cost whether the choice is proven cheapest, and the seconds that the chooser predicts
        units         split → how many of its units each rank has
        ops           name, op and choice of each, in order; see tpfx/passes/apply_plan.py
        collectives   kind, bytes, node and phase of each collective
        estimate      see `Estimate`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..capture.graph import Phase
from ..console.files import write
from ..errors import PlanError
from ..ir.parallel_graph import Collective, Solution
from ..ir.shards import Shards, even_layout
from ..passes.apply_plan import GraphChoices
from ..planning import Topology
from ..torch_internals.parameter_slots import slots_of
from ..version import __version__
from .estimate import Estimate
from .plan_json import plain, written
from .tables import html_summary, summary

SCHEMA = 1


@dataclass(frozen=True)
class WeightPlan:
    """What becomes of a parameter or buffer.

    Attributes:
        kind: "parameter" or "buffer".
        shape: the unsharded one.
        dtype: as torch names it, "bfloat16".
        axes: what each dimension is made of, as in a dump: "(a:8 b:128)".
        shards: what each rank holds; None where no graph uses it, and it is divided evenly as storage.
        why: which op needs the whole of it, if one does.
    """

    kind: str
    shape: list[int]
    dtype: str
    axes: list[str] = field(default_factory=list)
    shards: Shards | None = None
    why: str | None = None

    @property
    def bytes(self) -> int:
        """Those of the unsharded weight."""
        size: int = getattr(torch, self.dtype).itemsize
        for extent in self.shape:
            size *= extent
        return size

    def on_ranks(self, loads: Sequence[int]) -> list[int]:
        """The bytes that each rank holds.

        Args:
            loads: what each has already: those with the least get what is left over of a weight that no graph
                uses.
        """
        shards = even_layout(self.shape, loads) if self.shards is None else self.shards
        held = [self.bytes] * len(loads)
        for dim, owned in shards.dims:
            units = [sum(stop - start for start, stop in pieces) for pieces in owned]
            held = [size // max(1, self.shape[dim]) * own for size, own in zip(held, units, strict=True)]
        return held


def _unreached_last(weight: WeightPlan) -> tuple[bool, int]:
    """In the order in which weights are divided: of those that no graph uses, large ones first."""
    return weight.shards is None, -weight.bytes


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
    def choices(self) -> GraphChoices:
        """What of it an equal graph is carried out by."""
        proved = Solution([], self.cost, self.cost if self.optimal else 0.0, self.optimal, 0)
        return GraphChoices([op.choice for op in self.ops], self.units, proved)


@dataclass(frozen=True)
class Plan:
    """How a model is split over devices. `str(plan)` is a table; see the schema above.

    Attributes:
        model: the class of the model.
        devices: how many ranks.
        weights: what becomes of each parameter and buffer, by its name; tied ones once.
        graphs: how each captured graph is carried out.
        topology: what collectives and arithmetic were taken to cost.
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
        held = [0] * self.devices
        for weight in sorted(self.weights.values(), key=_unreached_last):
            held = [size + more for size, more in zip(held, weight.on_ranks(held), strict=True)]
        return held

    @property
    def total_bytes(self) -> int:
        """Bytes of the unsharded parameters and buffers."""
        return sum(weight.bytes for weight in self.weights.values())

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON.

        Raises:
            FileError: the file cannot be written.
        """
        write(path, self.to_json())

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
            why = getattr(error, "strerror", None) or error
            raise PlanError(
                f"cannot read the plan {path}: {why}; tpfx plan MODEL --devices N --output {path} writes one"
            ) from error
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
            raise PlanError(f"it is not JSON: {error}; write it anew with tpfx plan") from error
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            schema = found.get("schema") if isinstance(found, dict) else None
            raise PlanError(f"its schema is {schema}, not {SCHEMA}; write it anew with tpfx plan")
        try:
            return _plan_of(found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(
                f"a part of it is missing or wrong: {type(error).__name__}: {error}; write it anew with "
                "tpfx plan"
            ) from error

    def require(self, model: torch.nn.Module, devices: int) -> None:
        """See that the plan is for this model, so many devices and this version of tpfx.

        Raises:
            PlanError: it is for others; the difference is named.
        """
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
                raise PlanError(
                    f"the plan is for another model, {self.model}: {where} has no {name}; make one "
                    "for this model"
                )
            if (have.shape, have.dtype) != (want.shape, want.dtype):
                raise PlanError(
                    f"the plan is for another model, {self.model}: there {name} is {want.dtype} "
                    f"{want.shape}, here it is {have.dtype} {have.shape}; make one for this model"
                )

    def __str__(self) -> str:
        return summary(self)

    def _repr_html_(self) -> str:
        return html_summary(self)


def weights_of(model: torch.nn.Module) -> dict[str, WeightPlan]:
    """The parameters and buffers of a model, tied ones once, as yet without shards."""
    found: dict[str, WeightPlan] = {}
    seen: set[int] = set()
    for slot in slots_of(model):
        value = slot.value
        if id(value) not in seen:
            seen.add(id(value))
            found[slot.name] = WeightPlan(
                slot.kind, list(value.shape), str(value.dtype).removeprefix("torch.")
            )
    return found


# To JSON and back.


def _json_of(plan: Plan) -> dict[str, Any]:
    weights = {
        name: {
            **{field: value for field, value in plain(weight).items() if field != "why"},
            "shards": None if weight.shards is None else weight.shards.dims,
            **({} if weight.why is None else {"why": weight.why}),
        }
        for name, weight in plan.weights.items()
    }
    graphs = [
        {
            **plain(graph),
            "ops": [asdict(op) for op in graph.ops],
            "collectives": [asdict(one) for one in graph.collectives],
            "estimate": asdict(graph.estimate),
        }
        for graph in plan.graphs
    ]
    return {**plain(plan), "topology": asdict(plan.topology), "weights": weights, "graphs": graphs}


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
            "collectives": [Collective(**one) for one in found["collectives"]],
            "estimate": Estimate(**found["estimate"]),
        }
    )
