"""What a page shows of one number of devices: the plan, its graphs, what other ways cost, whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..capture.graph import Captured
from ..ir.parallel_graph import ParallelGraph
from ..plan.explain import Explainer, Price
from ..plan.make import describe, handed_on
from ..plan.offline import plan_graphs
from ..plan.plan import Plan
from ..plan.verdict import Call, Need, Verdict
from ..planning import Hardware, Topology
from .loads import Loads


@dataclass(frozen=True)
class Sheet:
    """One plan to be shown.

    Attributes:
        plan: what is shown.
        parallels: the planned graphs that it describes, in order.
        handed_on: of each graph, the results that later ones take.
        prices: of each graph, what the ways of its decisions cost, by names of nodes.
        verdict: what the plan comes to, where that is known.
    """

    plan: Plan
    parallels: Sequence[ParallelGraph]
    handed_on: Sequence[Sequence[int]]
    prices: Sequence[Mapping[str, Sequence[Price]]]
    verdict: Verdict | None = None

    def fullest(self, graph: int) -> int:
        """The rank that needs most memory while a graph runs."""
        run, held = self.plan.graphs[graph].estimate, self.plan.bytes_per_device
        needs = [sum(each) for each in zip(held, run.kept, run.activations, strict=True)]
        return needs.index(max(needs))

    def loads(self, graph: int) -> Loads:
        """What the ops of a graph take."""
        return Loads(
            self.parallels[graph],
            self.plan.topology,
            self.handed_on[graph],
            self.prices[graph],
            self.fullest(graph),
        )


def sheet_of(
    model: torch.nn.Module,
    captured: Sequence[Captured],
    devices: int,
    topology: Topology | None = None,
    parallels: Sequence[ParallelGraph] | None = None,
) -> Sheet:
    """Plan captured graphs, unless that is done, and price the other ways."""
    topology = topology or Topology()
    parallels = plan_graphs(captured, devices, topology) if parallels is None else parallels
    prices = [
        Explainer(one, parallel, topology).prices() if parallel.ranks > 1 else {}
        for one, parallel in zip(captured, parallels, strict=True)
    ]
    plan = describe(model, captured, parallels, topology)
    return Sheet(plan, parallels, handed_on(captured), prices)


def judged(sheets: Sequence[Sheet], hardware: Hardware, call: Call) -> list[Sheet]:
    """Plans of one model by their number of devices, each beside the one of fewest devices that hold it."""
    ordered, found = sorted(sheets, key=lambda sheet: sheet.plan.devices), list[Sheet]()
    usable = hardware.usable
    holding = [one.plan for one in ordered if usable is None or Need.of(one.plan).total <= usable]
    for sheet in ordered:
        fewer = next((plan for plan in holding if plan.devices < sheet.plan.devices), None)
        found.append(replace(sheet, verdict=Verdict(sheet.plan, hardware, call, fewer)))
    return found
