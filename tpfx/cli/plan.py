"""`tpfx plan`: bytes, collectives and time of a split, and the plan as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from ..capture.capture import capture
from ..capture.graph import Captured, Phase
from ..errors import InputError
from ..plan.generation import capture_generation
from ..plan.make import capture_device, plan_of
from ..plan.tables import comparison
from ..planning import topology_of
from .arguments import (
    BatchOption,
    DeviceTypeOption,
    LengthOption,
    ModelArgument,
    PhaseName,
    SettingsOption,
    SymbolicOption,
    TopologyOption,
    console,
    leaves_open,
    require_devices,
    step,
)
from .models import Built, build


def plan(
    model: ModelArgument,
    devices: Annotated[
        int | None, typer.Option("--devices", "-n", metavar="N", help="How many devices to split it over.")
    ] = None,
    settings: SettingsOption = None,
    phase: Annotated[
        PhaseName | None,
        typer.Option(
            help="One call; that and the decode step after it; or forward and backward. Left out: the second "
            "of a model that generates, else the first."
        ),
    ] = None,
    batch: BatchOption = 1,
    length: LengthOption = 4096,
    symbolic: SymbolicOption = None,
    topology: TopologyOption = "h100-nvlink",
    device_type: DeviceTypeOption = None,
    compare: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="Print several numbers of devices side by side.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the plan to a file, and a table here."),
    ] = None,
) -> None:
    """Plan a split: bytes on each device, collectives, and the time they take.

    Prints the plan as JSON, which tpfx.compile(model, devices, plan=FILE) takes, or, with --output, writes
    it to a file and prints a table. Of a transformers model that generates, the calls are those that its
    generate makes. Keys, values and activations are those of --batch sequences of --length tokens; times are
    what the topology says, one after the other. tpfx.compile divides the weights as the plan says in any
    case, and carries out its graphs where their sizes were left open.

    \b
    Does it fit on 8 GPUs, with 32 sequences of 8,192 tokens?
      tpfx plan ./Llama-3.1-405B --devices 8 --batch 32 --length 8192 -o plan.json

    \b
    Where does it stop paying?
      tpfx plan llama --compare 1,2,4,8
    """
    counts = _counts(devices, compare)
    costs, device = topology_of(topology), capture_device(device_type)
    with step("building the model, without weights"):
        built = build(model, settings or [], batch, length, labels=phase == PhaseName.train)
    open_sizes = leaves_open(symbolic, built.model)
    with step("capturing its graphs"):
        captured = _capture(built, open_sizes, phase, device)
    plans = []
    for count in counts:
        with step(f"planning for {count} devices"):
            plans.append(plan_of(built.model, captured, count, costs))
    if compare is not None:
        print(comparison(plans))
    elif output is None:
        print(plans[0].to_json())
    else:
        plans[0].save(output)
        print(plans[0])
        console.print(f"wrote {output}")


def _capture(built: Built, symbolic: bool, phase: PhaseName | None, device: torch.device) -> list[Captured]:
    """What `generate` runs, of a model that has it; or a call with inputs that a user's function gives."""
    wanted: Phase | None = None if phase is None else phase.value
    if built.config is None and built.inputs is not None:
        return capture(built.model, built.inputs, symbolic=symbolic, phase=wanted or "prefill", device=device)
    return capture_generation(built.model, built.inputs, symbolic=symbolic, phase=wanted, device=device)


def _counts(devices: int | None, compare: str | None) -> list[int]:
    """The numbers of devices to plan for.

    Raises:
        InputError: none, or both ways of saying them, or no numbers.
    """
    if (devices is None) == (compare is None):
        raise InputError("name --devices N, or --compare N,N,… for several")
    try:
        counts = [devices] if devices is not None else [int(word) for word in (compare or "").split(",")]
    except ValueError:
        raise InputError(f"--compare {compare}: write numbers of devices, such as 2,4,8") from None
    for count in counts:
        require_devices(count)
    return counts
