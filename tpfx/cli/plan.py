"""`tpfx plan`: bytes, collectives and time of a split, and the plan as a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..capture.capture import capture
from ..capture.graph import Captured, Phase
from ..console.files import require_writable, write
from ..console.streams import folded, width
from ..draw.measured import Span, devices_of, read_spans
from ..draw.page import page
from ..draw.sheet import Sheet, judged, sheet_of
from ..errors import InputError
from ..formatting import bytes_text, counted
from ..plan.estimate import is_ids, unit_of
from ..plan.generation import capture_generation
from ..plan.make import capture_device, plan_of
from ..plan.plan import Plan
from ..plan.tables import comparison, summary
from ..plan.verdict import Call, Need, Verdict
from ..planning import Hardware, hardware_of
from ..torch_internals.fx import tree_leaves
from .arguments import (
    BatchOption,
    DeviceTypeOption,
    FullLengthOption,
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
    length: FullLengthOption = None,
    symbolic: SymbolicOption = None,
    topology: TopologyOption = "h100-nvlink",
    device_type: DeviceTypeOption = None,
    memory: Annotated[
        float | None, typer.Option(metavar="GIB", help="Memory of one device, if not that of --topology.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="Print several numbers of devices side by side.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the plan to a file, for tpfx.compile."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the plan as JSON, and nothing else.")
    ] = False,
    page_file: Annotated[
        Path | None,
        typer.Option("--page", metavar="FILE", help="Write a page that shows the plan, for a browser."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Spans that were measured, which --page draws beside the estimate."
        ),
    ] = None,
) -> None:
    """Plan a split: does it fit, how fast is it, does it pay; and where the bytes and the time go.

    Of a transformers model that generates, the calls are those that its generate makes. Keys, values and
    activations are those of --batch sequences of --length tokens; times are what the topology says, one after
    the other. What --output writes is for tpfx.compile(model, devices, plan=FILE), which divides the weights
    as it says in any case, and carries out its graphs where their sizes were left open.

    Ends with status 1 where the model does not fit, of several numbers of devices on none, and 2 where
    something is wrong with what was asked.

    \b
    Does it fit on 8 GPUs, with 32 sequences of 8,192 tokens?
      tpfx plan ./Llama-3.1-405B --devices 8 --batch 32 --length 8192 -o plan.json

    \b
    Where does it stop paying? In a table, and on a page with every module and what each other way costs:
      tpfx plan llama --compare 1,2,4,8 --page llama.html
    """
    counts = _counts(devices, compare)
    if compare is not None and (as_json or output is not None):
        raise InputError("--compare is of several plans, --json and --output of one: name --devices N there")
    hardware, device = hardware_of(topology, memory), capture_device(device_type)
    spans = _spans(profile, page_file, counts)
    for file in filter(None, (output, page_file)):
        require_writable(file)
    with step("building the model, without weights"):
        built = build(model, settings or [], batch, length, labels=phase == PhaseName.train)
    open_sizes = leaves_open(symbolic, built.model)
    with step("capturing its graphs"):
        captured = _capture(built, open_sizes, phase, device)

    sheets: dict[int, Sheet] = {}

    def planned(count: int) -> Plan:
        with step(f"planning for {count} device{'s' * (count != 1)}"):
            if page_file is None:
                return plan_of(built.model, captured, count, hardware.topology)
            sheets[count] = sheet_of(built.model, captured, count, hardware.topology)
            return sheets[count].plan

    plans = [planned(count) for count in counts]
    if output is not None:
        plans[0].save(output)
    alone = compare is None and (page_file is not None or not as_json)
    fewer = _fewest(planned, hardware, counts[0]) if alone else None
    if page_file is not None:
        shown = devices_of(spans) or counts[-1]
        write(page_file, page(judged([*sheets.values()], hardware, _call(built)), shown, spans))
        console.print(f"wrote {page_file}")
    if as_json:
        print(plans[0].to_json())
        raise typer.Exit(_status(plans, hardware, built))
    if compare is not None:
        print(comparison(plans, _answers(plans, hardware), width()))
        raise typer.Exit(_status(plans, hardware, built))
    verdict = Verdict(plans[0], hardware, _call(built), fewer)
    print(f"{folded(str(verdict))}\n\n{summary(plans[0], width())}")
    if output is not None:
        console.print(f"wrote {output}")
    raise typer.Exit(_status(plans, hardware, built))


def _status(plans: Sequence[Plan], hardware: Hardware, built: Built) -> int:
    """1 where it is known that none of the plans fits."""
    return int(all(Verdict(plan, hardware, _call(built)).fits is False for plan in plans))


def _spans(profile: Path | None, page_file: Path | None, counts: Sequence[int]) -> list[Span]:
    """What a profile has measured.

    Raises:
        InputError: nobody would see it, it cannot be read, or it is of other numbers of devices.
    """
    if profile is None:
        return []
    if page_file is None:
        raise InputError(f"--profile {profile} is for the page: name its file with --page")
    spans = read_spans(profile)
    if devices_of(spans) not in counts:
        raise InputError(
            f"the profile {profile} is of {counted(devices_of(spans), 'device')}, which is not planned for; "
            f"name as many with --devices or --compare"
        )
    return spans


def _call(built: Built) -> Call:
    """What the model was planned for, by its inputs."""
    tensors = [leaf for leaf in tree_leaves(built.inputs) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    ids = next(filter(is_ids, tensors), None)
    if ids is not None:
        return Call(*ids.shape)
    first = next((leaf for leaf in tensors if leaf.is_floating_point()), torch.zeros(1))
    return Call(first.shape[0], None, unit_of(first))


def _answers(plans: Sequence[Plan], hardware: Hardware) -> dict[str, list[str]]:
    """Whether each fits, where that is known."""
    usable = hardware.usable
    if usable is None:
        return {}
    fits = ["yes" if Need.of(plan).total <= usable else "no" for plan in plans]
    return {f"fits {hardware.title}, {bytes_text(usable)}": fits}


def _fewest(planned: Callable[[int], Plan], hardware: Hardware, devices: int) -> Plan | None:
    """The plan for the fewest devices below some number that hold the model, if any do."""
    if devices == 1:
        return None
    one = planned(1)
    usable = hardware.usable
    if usable is None or Need.of(one).total <= usable:
        return one
    about = Verdict(one, hardware, Call(1, None)).fewest
    for count in range(about or 2, min(devices, (about or 2) + 2)):
        plan = planned(count)
        if Need.of(plan).total <= usable:
            return plan
    return None


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
