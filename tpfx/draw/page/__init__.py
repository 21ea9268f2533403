"""A plan as a page: one file that shows how a model is split, and needs nothing else to do so.

    Path("llama-8.html").write_text(page(plan, parallels))

`contents` is what the page draws, as JSON: numbers are those of the plan, and alike layers are in it once.
page.html, style.css and the scripts beside this file are put together with it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from ...dump.columns import Row
from ...ir.parallel_graph import Collective, ParallelGraph
from ...plan.plan import GraphPlan, Plan
from ..module_tree import Blocks, Member, Module, OpLine, Part, Stack, WeightLine, Weights, blocks

_SCRIPTS = ("model.js", "bars.js", "tree.js", "details.js", "search.js", "main.js")


def page(plan: Plan, parallels: Sequence[ParallelGraph]) -> str:
    """A page of a plan.

    Args:
        plan: what is shown.
        parallels: the planned graphs that it describes, in order.

    Returns:
        HTML, with its style, its script and all numbers inside.
    """
    scripts = "\n".join(_file(name) for name in _SCRIPTS)
    parts = {
        "TITLE": _escaped(f"{plan.model} on {plan.devices} devices"),
        "STYLE": _file("style.css"),
        "PLAN": embedded(contents(plan, parallels)),
        "SCRIPT": f"(() => {{\n'use strict';\n{scripts}\n}})();",
    }
    before, *rest = _file("page.html").split("<!--put ")
    filled = [parts[name] + after for name, _, after in (each.partition("-->") for each in rest)]
    return before + "".join(filled)


def embedded(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def contents(plan: Plan, parallels: Sequence[ParallelGraph]) -> dict[str, Any]:
    """What the page draws, as JSON."""
    weights = Weights(plan)
    drawn = [blocks(parallel, weights) for parallel in parallels]
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
        "graphs": [{**_numbers(graph), **_drawn(one)} for graph, one in zip(plan.graphs, drawn, strict=True)],
        "unused": unused,
        "weights": [_weight(weights, at, plan.devices) for at in range(len(weights.plans))],
    }


def _numbers(graph: GraphPlan) -> dict[str, Any]:
    """The numbers of a graph, collectives of a kind together."""
    return {
        "phase": graph.phase,
        "optimal": graph.optimal,
        "cost": graph.cost,
        "ops": len(graph.ops),
        "estimate": {**asdict(graph.estimate), "seconds": graph.estimate.seconds},
        "collectives": _counted(graph.collectives),
    }


def _counted(collectives: Sequence[Collective]) -> list[dict[str, Any]]:
    counts = Counter((collective.kind, collective.phase) for collective in collectives)
    sizes: Counter[tuple[str, str]] = Counter()
    for collective in collectives:
        sizes[collective.kind, collective.phase] += collective.bytes
    return [
        {"kind": kind, "phase": phase, "count": count, "bytes": sizes[kind, phase]}
        for (kind, phase), count in counts.items()
    ]


def _weight(weights: Weights, at: int, ranks: int) -> dict[str, Any]:
    weight = weights.plans[at]
    return {
        "kind": weight.kind,
        "shape": weight.shape,
        "dtype": weight.dtype,
        "axes": weight.axes,
        "bytes": weight.bytes,
        "held": weight.on_ranks([0] * ranks),
        "shards": None if weight.shards is None else weight.shards.dims,
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
        case WeightLine(name, before, type, notes, index):
            return {"weight": index, "name": name, "before": before, "type": type, "notes": notes}
        case OpLine():
            return _op(item)


def _member(member: Member) -> dict[str, Any]:
    return asdict(member)


def _op(op: OpLine) -> dict[str, Any]:
    found = {key: value for key, value in asdict(op).items() if value}
    if op.collective is not None:
        found["collective"] = {"kind": op.collective[0], "bytes": op.collective[1]}
    return {"notes": (), **found}


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
