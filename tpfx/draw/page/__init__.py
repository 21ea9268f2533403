"""Plans as a page: one file that shows how a model is split, and needs nothing else to do so.

    Path("llama.html").write_text(page([sheet_of(model, captured, devices) for devices in (1, 2, 4)]))

`contents` is what the page draws, as JSON: numbers are those of the plans, and alike layers are in it once.
page.html, style.css and the scripts beside this file are put together with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from ...dump.columns import Row
from ...ir.parallel_graph import Collective, ParallelGraph
from ...ir.shards import even_layout
from ...plan.estimate import Run
from ...plan.plan import GraphPlan, Plan
from ...plan.tables import phase_text
from ...plan.verdict import Verdict
from ..measured import Span
from ..module_tree import Blocks, Member, Module, OpLine, Part, Priced, Stack, WeightLine, Weights, blocks
from ..sheet import Sheet

_STYLES = ("style.css", "charts.css", "graph.css")
_SCRIPTS = (
    "model.js",
    "loads.js",
    "bars.js",
    "tree.js",
    "legend.js",
    "ways.js",
    "details.js",
    "search.js",
    "memory.js",
    "timeline.js",
    "compare.js",
    "main.js",
)


def page(sheets: Sequence[Sheet], shown: int | None = None, measured: Sequence[Span] = ()) -> str:
    """A page of plans of one model.

    Args:
        sheets: one for each number of devices.
        shown: the number of devices that is on show at first; None for the last.
        measured: of a call on so many devices, by a profile.

    Returns:
        HTML, with its style, its script and all numbers inside.
    """
    counts = [sheet.plan.devices for sheet in sheets]
    shown = counts[-1] if shown is None else shown
    scripts = "\n".join(_file(name) for name in _SCRIPTS)
    found = {
        "shown": counts.index(shown),
        "sheets": [contents(sheet) for sheet in sheets],
        "measured": [asdict(span) for span in measured],
    }
    devices = f"{shown} device{'s' * (shown != 1)}"
    parts = {
        "TITLE": _escaped(f"{sheets[0].plan.model} on {devices}"),
        "STYLE": "\n".join(_file(name) for name in _STYLES),
        "PLAN": embedded(found),
        "SCRIPT": f"(() => {{\n'use strict';\n{scripts}\n}})();",
    }
    before, *rest = _file("page.html").split("<!--put ")
    filled = [parts[name] + after for name, _, after in (each.partition("-->") for each in rest)]
    return before + "".join(filled)


def embedded(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def contents(sheet: Sheet) -> dict[str, Any]:
    """What the page draws of a plan, as JSON."""
    plan, weights = sheet.plan, Weights(sheet.plan)
    drawn = [blocks(parallel, weights, sheet.loads(graph)) for graph, parallel in enumerate(sheet.parallels)]
    unused = [
        {"name": name, "weight": weights.add(name)}
        for name, weight in plan.weights.items()
        if weight.shards is None
    ]
    return {
        "model": plan.model,
        "devices": plan.devices,
        "tpfx": plan.tpfx,
        "total_bytes": plan.total_bytes,
        "bytes_per_device": plan.bytes_per_device,
        "verdict": _verdict(sheet.verdict),
        "graphs": [
            {**_numbers(plan, graph, parallel), "fullest": sheet.fullest(at), **_drawn(one)}
            for at, (graph, parallel, one) in enumerate(zip(plan.graphs, sheet.parallels, drawn, strict=True))
        ],
        "unused": unused,
        "weights": [_weight(weights, at, plan.devices) for at in range(len(weights.plans))],
    }


def _verdict(verdict: Verdict | None) -> dict[str, Any] | None:
    """Whether it fits, and in words what it comes to: "room", "a sequence of …"."""
    if verdict is None:
        return None
    return {
        "fits": verdict.fits,
        "usable": verdict.hardware.usable,
        "hardware": verdict.hardware.title,
        "need": asdict(verdict.need),
        "lines": [line.partition(": ")[::2] for line in str(verdict).splitlines()],
    }


def _numbers(plan: Plan, graph: GraphPlan, parallel: ParallelGraph) -> dict[str, Any]:
    """The numbers of a graph, collectives of a kind together."""
    run = Run(parallel.graph, parallel.ranks, plan.topology)
    return {
        "phase": graph.phase,
        "called": phase_text(graph.phase, [each.phase for each in plan.graphs]),
        "optimal": graph.optimal,
        "cost": graph.cost,
        "ops": len(graph.ops),
        "estimate": {**asdict(graph.estimate), "seconds": graph.estimate.seconds},
        "collectives": _counted(graph.collectives, run),
    }


def _counted(collectives: Sequence[Collective], run: Run) -> list[dict[str, Any]]:
    alike: dict[tuple[str, str], list[Collective]] = {}
    for one in collectives:
        alike.setdefault((one.kind, one.phase), []).append(one)
    return [
        {
            "kind": kind,
            "phase": phase,
            "count": len(found),
            "bytes": sum(one.bytes for one in found),
            "seconds": _rounded(sum(run.sent(kind, one.bytes) for one in found)),
        }
        for (kind, phase), found in alike.items()
    ]


def _weight(weights: Weights, at: int, ranks: int) -> dict[str, Any]:
    weight = weights.plans[at]
    shards = weight.shards
    if shards is None:
        shards = even_layout(weight.shape, [0] * ranks)
    return {
        "kind": weight.kind,
        "shape": weight.shape,
        "dtype": weight.dtype,
        "axes": weight.axes,
        "bytes": weight.bytes,
        "held": weight.on_ranks([0] * ranks),
        "shards": shards.dims,
        "unused": weight.shards is None,
        "cuts": weights.cuts[at],
    }


def _drawn(graph: Blocks) -> dict[str, Any]:
    return {
        "summary": graph.summary,
        "inputs": [_row(row) for row in graph.inputs],
        "items": [_item(item) for item in graph.items],
        "results": [_row(row) for row in graph.results],
    }


def _row(row: Row) -> dict[str, Any]:
    return {"name": row.name, "type": row.type, "notes": row.comments}


def _item(item: Part | Stack) -> dict[str, Any]:
    match item:
        case Stack(kinds, members):
            return {"kinds": [_item(kind) for kind in kinds], "members": [_member(one) for one in members]}
        case Module(name, parts):
            return {"module": name, "parts": [_item(part) for part in parts]}
        case WeightLine(name, before, type, notes, index, ways):
            line = {"weight": index, "name": name, "before": before, "type": type, "notes": notes}
            return line | ({"ways": _ways(ways)} if ways else {})
        case OpLine():
            return _op(item)


def _member(member: Member) -> dict[str, Any]:
    return asdict(member)


def _op(op: OpLine) -> dict[str, Any]:
    found = {key: value for key, value in asdict(op).items() if value}
    if op.ways:
        found["ways"] = _ways(op.ways)
    if op.seconds:
        found["seconds"] = [_rounded(each) for each in op.seconds]
    if op.collective is not None:
        found["collective"] = {"kind": op.collective[0], "bytes": op.collective[1]}
    return {"notes": (), **found}


def _ways(ways: Sequence[Priced]) -> list[tuple[str, bool, float]]:
    return [(text, chosen, _rounded(more)) for text, chosen, more in ways]


def _rounded(seconds: float) -> float:
    """Of an estimate nobody needs more digits."""
    return float(f"{seconds:.6g}")


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
