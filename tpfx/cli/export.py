"""`tpfx export`: a plan for other tools."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from ..capture.capture import capture
from ..export.exporter import export as exported
from ..plan.offline import plan_graphs
from .arguments import DevicesOption, ModelArgument, SettingsOption, console, require_devices, step
from .models import build


class ExportFormat(StrEnum):
    """Who reads the plan."""

    hf_tp_plan = "hf-tp-plan"
    parallelize_module = "parallelize-module"


def export(
    model: ModelArgument,
    devices: DevicesOption,
    to: Annotated[ExportFormat, typer.Option(help="transformers' tp_plan, or torch's parallelize_module.")],
    settings: SettingsOption = None,
    batch: Annotated[int, typer.Option(help="Sequences, or images, in the example input.")] = 2,
    length: Annotated[int, typer.Option(help="Tokens in each sequence.")] = 128,
    json: Annotated[bool, typer.Option("--json", help="Write JSON instead of Python.")] = False,
) -> None:
    """Write the plan for transformers or for torch's DTensor, as a Python file; what it cannot say is in it.

    \b
      tpfx export ./Llama-3.1-8B --devices 4 --to hf-tp-plan > tp_plan.py
      tpfx export llama --devices 2 --to parallelize-module
    """
    require_devices(devices)
    with step("building the model, without weights"):
        built = build(model, settings or [], batch, length)
    with step("capturing its graphs"):
        captured = capture(built.model, built.inputs)
    with step(f"planning for {devices} devices"):
        plans = plan_graphs(captured, devices)
    with step("seeing what the other tool would run"):
        made = exported(built.model, plans, to.value, built.inputs)
    print(made.json if json else made.source)
    if made.unexpressed:
        console.print(f"{len(made.unexpressed)} modules cannot be split as planned; the output says which")
