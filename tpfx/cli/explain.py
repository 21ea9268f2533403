"""`tpfx explain` and `tpfx diff`: why a plan is as it is, and in what two differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..capture.capture import capture
from ..plan.diff import differences
from ..plan.explain import Explainer, Explanation
from ..plan.offline import plan_graphs
from ..plan.plan import Plan
from ..planning import topology_of
from .arguments import (
    BatchOption,
    DevicesOption,
    FullLengthOption,
    ModelArgument,
    PhaseName,
    SettingsOption,
    TopologyOption,
    require_devices,
    step,
)
from .models import build


def explain(
    model: ModelArgument,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Weights and ops, as in a dump.")],
    devices: DevicesOption,
    settings: SettingsOption = None,
    phase: Annotated[PhaseName, typer.Option(help="As for tpfx dump.")] = PhaseName.prefill,
    batch: BatchOption = 1,
    length: FullLengthOption = None,
    topology: TopologyOption = "h100-nvlink",
) -> None:
    """Say why a weight or an op is split as it is, and what every other way would cost.

    Each other way is priced by planning the whole model anew with that one decision fixed. For a value that
    is reduced or gathered, says which op needs it whole, and why.

    \b
      tpfx explain llama layers.0.self_attn.k_proj.weight layers.0.mlp.down_proj --devices 8
    """
    require_devices(devices)
    costs = topology_of(topology)
    with step("building the model, without weights"):
        built = build(model, settings or [], batch, length, labels=phase == "train")
    with step("capturing its graphs"):
        captured = capture(built.model, built.inputs, phase=phase.value)
    with step(f"planning for {devices} devices"):
        plans = plan_graphs(captured, devices, costs)
        explainers = [Explainer(one, plan, costs) for one, plan in zip(captured, plans, strict=True)]
    for name in names:
        with step(f"planning the other ways of {name}"):
            found = _explained(name, explainers)
        print("\n\n".join(map(str, found)))
        print()


def _explained(name: str, explainers: list[Explainer]) -> list[Explanation]:
    """What each graph that has the name says of it."""
    having = [explainer for explainer in explainers if name in explainer.names()]
    return [explainer.explain(name) for explainer in having or explainers[:1]]


def diff(
    left: Annotated[Path, typer.Argument(metavar="A.json", help="A plan that tpfx plan wrote.")],
    right: Annotated[Path, typer.Argument(metavar="B.json", help="Another.")],
) -> None:
    """Say in what two plans differ, one line each; exits with 1 where they do.

    \b
      tpfx plan llama --devices 8 -o a.json
      tpfx plan llama --devices 8 --topology pcie4 -o b.json
      tpfx diff a.json b.json
    """
    lines = list(differences(Plan.load(left), Plan.load(right)))
    for line in lines:
        print(line)
    raise typer.Exit(1 if lines else 0)
