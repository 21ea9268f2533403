"""`tpfx dump`: a model's graphs as they are captured, planned, or written for a rank."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated

import typer
from torch.fx import Graph

from ..capture.capture import capture
from ..capture.graph import Captured
from ..console.streams import document
from ..draw.dot import dot
from ..draw.model_explorer import model_explorer
from ..draw.page import page
from ..draw.sheet import sheet_of
from ..draw.svg import svg
from ..dump.text import dump_json, dump_text, structures
from ..errors import InputError
from ..export.named_graph import graphml, named
from ..ir.parallel_graph import ParallelGraph
from ..passes.context import Context
from ..passes.lower import lower
from ..passes.pipeline import STAGES, infer_structures
from ..passes.stages import CAPTURED, LOCALIZE, observing, text_of
from ..plan.make import describe
from ..plan.offline import plan_graphs
from ..plan.plan import Plan
from ..planning import Topology
from ..runtime.mesh import Mesh, parse_devices
from .arguments import (
    BatchOption,
    DevicesOption,
    LengthOption,
    ModelArgument,
    PhaseName,
    SettingsOption,
    SymbolicOption,
    leaves_open,
    require_devices,
    step,
)
from .models import build


class Format(StrEnum):
    """How a graph is written."""

    text = "text"
    json = "json"
    html = "html"
    svg = "svg"
    dot = "dot"
    graphml = "graphml"
    model_explorer = "model-explorer"


_DRAWN: dict[Format, Callable[[Plan, Sequence[ParallelGraph]], str]] = {
    Format.svg: svg,
    Format.dot: dot,
    Format.graphml: lambda _, parallels: graphml(named(parallels[-1])),
    Format.model_explorer: lambda plan, parallels: json.dumps(model_explorer(plan, parallels), indent=1),
}


def dump(
    model: ModelArgument,
    devices: DevicesOption,
    settings: SettingsOption = None,
    stage: Annotated[
        str,
        typer.Option(
            metavar="STAGE",
            help="captured: as PyTorch traced it; the name of a pass, such as normalize or choose: as that "
            "leaves it; axes: the weights, and what their dimensions are made of; parallel: with layouts "
            "and collectives; rank0, rank1, …: the code that one rank runs.",
        ),
    ] = "parallel",
    format: Annotated[
        Format,
        typer.Option(
            help="Text; JSON; html: a page to click through, without a server; svg: a picture; dot: the "
            "same for Graphviz; graphml: for networkx, yEd or Gephi, the graph of the last call; "
            "model-explorer: for Google's Model Explorer. All but text and JSON show the stage parallel."
        ),
    ] = Format.text,
    phase: Annotated[
        PhaseName, typer.Option(help="One call; that and the decode step after it; or forward and backward.")
    ] = PhaseName.prefill,
    unfold: Annotated[bool, typer.Option("--unfold", help="Write repeated layers one by one.")] = False,
    batch: BatchOption = 2,
    length: LengthOption = 128,
    symbolic: SymbolicOption = None,
) -> None:
    """Print how a model is split: its parallel graph, one line an op.

    \b
    Each line: name, type, op. In the types, 4096/2 is a dimension divided in 2, and + marks partial sums:
    every rank has one, until an all_reduce. The inputs show what a weight's dimensions are made of;
    an axis has the same letter wherever it occurs. Layers that are alike are written once, the first
    of them, under a heading such as layers.0–31 ×32.

    \b
    A small Llama on 2 devices, and then only what they send each other:
      tpfx dump llama --devices 2 --set num_hidden_layers=2
      tpfx dump llama --devices 2 --set num_hidden_layers=2 | grep -E 'all_reduce|all_gather|gathered'

    \b
    The same as a page, for a browser: modules to unfold, weights with their splits, search:
      tpfx dump llama --devices 2 --format html > llama.html

    \b
    A checkpoint that does not fit on one device (only its config.json is read):
      tpfx dump ./Llama-3.1-405B --devices 8

    \b
    Forward and backward; the code of the second device:
      tpfx dump gpt2 --devices 2 --phase train
      tpfx dump gpt2 --devices 2 --stage rank1
    """
    require_devices(devices)
    _check_stage(stage, devices)
    drawn = format is Format.html or format in _DRAWN
    if drawn and stage != "parallel":
        raise InputError(f"--format {format} draws the stage parallel; leave out --stage {stage}")
    with step("building the model, without weights"):
        built = build(model, settings or [], batch, length, labels=phase == "train")
    open_sizes = leaves_open(symbolic, built.model)
    with step("capturing its graphs"):
        captured = capture(built.model, built.inputs, symbolic=open_sizes, phase=phase.value)
    if stage == CAPTURED:
        _print([text_of(CAPTURED, one.module.graph) for one in captured], format)
    elif stage == "axes":
        _print([_axes(one, devices) for one in captured], format)
    else:
        with step(f"planning for {devices} devices"):
            plans, texts = _planned(captured, devices, stage, unfold)
        if format is Format.html:
            print(document(page([sheet_of(built.model, captured, devices, parallels=plans)])))
        elif format in _DRAWN:
            print(document(_DRAWN[format](describe(built.model, captured, plans, Topology()), plans)))
        elif format == "json" and stage == "parallel":
            print(json.dumps([dump_json(plan) for plan in plans], indent=1))
        else:
            _print(texts, format)


def _planned(
    captured: Sequence[Captured], devices: int, stage: str, unfold: bool
) -> tuple[list[ParallelGraph], list[str]]:
    """The planned graphs, and the text of each at a stage."""
    texts: list[str] = []

    def keep(name: str, graph: Graph) -> None:
        if name == stage:
            texts.append(text_of(name, graph, unfold=unfold))

    with observing(keep):
        plans = plan_graphs(captured, devices)
    if stage == "parallel":
        texts = [dump_text(plan, unfold=unfold) for plan in plans]
    elif stage not in STAGES:
        texts = [_rank_code(plan, int(stage.removeprefix("rank"))) for plan in plans]
    return plans, texts


def _check_stage(stage: str, devices: int) -> None:
    """Refuse a stage that is not there.

    Raises:
        InputError: it is not.
    """
    known = (*(name for name in STAGES if name != LOCALIZE), "axes", "parallel")
    ranks = [f"rank{rank}" for rank in range(devices)]
    if stage not in known and stage not in ranks:
        raise InputError(f"--stage {stage}: it is {', '.join(known)}, or rank0 to {ranks[-1]}")


def _print(texts: Sequence[str], format: Format) -> None:
    if format == "json":
        print(json.dumps([text.splitlines() for text in texts], indent=1))
    else:
        print("\n\n".join(texts))


def _axes(one: Captured, devices: int) -> str:
    module = one.copy().module
    infer_structures(module.graph, one.sources, Context(devices))
    return structures(module.graph)


def _rank_code(plan: ParallelGraph, rank: int) -> str:
    root = plan.graph.owning_module
    assert root is not None
    names = tuple(f"tp:{each}" for each in range(plan.ranks))
    mesh = Mesh(parse_devices(["cpu"] * plan.ranks), (rank,), names)
    (module,) = lower(plan.graph, mesh, root)
    return str(module.code).strip()
