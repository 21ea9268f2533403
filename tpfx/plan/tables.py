"""Plans as tables: one plan, or one model on several numbers of devices side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table

from ..formatting import bytes_text, counted, seconds_text
from ..ir.provenance import layer_of

if TYPE_CHECKING:
    from .plan import GraphPlan, Plan

WIDTH = 110  # columns, where nobody has said how many there are


def summary(plan: Plan, width: int | None = None) -> str:
    """A plan's memory, collectives and time; `width` as `rendered` takes it."""
    tables = (_fitting(table, width or WIDTH) for table in (_memory_table(plan), _run_table(plan)))
    return rendered(*tables, width=width)


def html_summary(plan: Plan) -> str:
    """The same for a notebook."""
    return html(_memory_table(plan), _run_table(plan))


def comparison(plans: Sequence[Plan], answers: Mapping[str, Sequence[str]], width: int | None = None) -> str:
    """Plans for different numbers of devices, a column each: where does it stop paying?

    Args:
        plans: of one model.
        answers: rows to begin with, a word for each plan.
        width: as `rendered` takes it.
    """
    table = Table(title=f"{plans[0].model} on more devices", title_justify="left")
    table.add_column("")
    for plan in plans:
        table.add_column(counted(plan.devices, "device"), justify="right")
    for question, words in answers.items():
        table.add_row(question, *words)
    table.add_row("weights, most on a device", *(bytes_text(max(plan.bytes_per_device)) for plan in plans))
    for at, graph in enumerate(plans[0].graphs):
        table.add_section()
        runs = [plan.graphs[at] for plan in plans]
        rows = {"kept for later calls": [max(run.estimate.kept) for run in runs]}
        if not any(graph.estimate.kept):
            rows.clear()
        rows["activations, at most"] = [max(run.estimate.activations) for run in runs]
        for what, most in rows.items():
            called = f"{_phase_text(graph, plans[0])}: " if what == next(iter(rows)) else ""
            table.add_row(f"{called}{what}", *map(bytes_text, most))
        table.add_row("collectives", *(str(len(run.collectives)) for run in runs))
        table.add_row("their bytes", *(bytes_text(_sent(run)) for run in runs))
        table.add_row("time, predicted", *(seconds_text(run.estimate.seconds) for run in runs))
        table.add_row("of it in collectives", *(f"{_share(run):.0%}" for run in runs))
        spent = [run.estimate.seconds * plan.devices for run, plan in zip(runs, plans, strict=True)]
        table.add_row("time × devices, over the first", *(f"{each / spent[0]:.2f}" for each in spent))
    return rendered(table, width=width)


def html(*parts: RenderableType) -> str:
    """The same for a notebook; what is no table is a line."""
    return "\n".join(
        _html_table(part) if isinstance(part, Table) else f"<p>{escape(str(part))}</p>" for part in parts
    )


def _html_table(table: Table) -> str:
    def row(tag: str, cells: Sequence[object]) -> str:
        aligned = zip(table.columns, cells, strict=True)
        return "".join(
            f'<{tag} style="text-align: {column.justify}">{escape(str(cell))}</{tag}>'
            for column, cell in aligned
        )

    head = row("th", [column.header for column in table.columns])
    rows = zip(*(column.cells for column in table.columns), strict=True)
    body = "\n".join(f"<tr>{row('td', list(cells))}</tr>" for cells in rows)
    style = "text-align: left; white-space: nowrap"
    title = f'<caption style="{style}">{escape(str(table.title))}</caption>'
    return f"<table>{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"


def rendered(*parts: RenderableType, width: int | None = None) -> str:
    """Tables as plain text, of so many columns at most; None for the same everywhere."""
    console = Console(
        width=width or WIDTH,
        force_terminal=False,
        force_jupyter=False,
        color_system=None,
        markup=False,
        emoji=False,
        highlight=False,
    )
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def _fitting(table: Table, width: int) -> Table:
    """A table; where words would be cut in so many columns, with its rows as columns, if that is narrower."""
    console = Console(width=width)
    free = console.options.update(max_width=10_000)
    turned = Table(title=table.title, title_justify="left")
    first, *others = table.columns
    turned.add_column(first.header)
    for cell in first.cells:
        turned.add_column(cell, justify="right")
    for column in others:
        turned.add_row(column.header, *column.cells)
    wide, narrow = (console.measure(one, options=free).minimum for one in (table, turned))
    return turned if narrow < wide > width else table


def _memory_table(plan: Plan) -> Table:
    table = Table(title=f"{plan.model} on {counted(plan.devices, 'device')}", title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("weights", justify="right")
    table.add_column("of the whole", justify="right")
    for graph in plan.graphs:
        for what in _memory_columns(graph):
            table.add_column(f"{_phase_text(graph, plan)}: {what}", justify="right")
    for rank, size in enumerate(plan.bytes_per_device):
        memory = [bytes_text(held[rank]) for graph in plan.graphs for held in _memory_columns(graph).values()]
        table.add_row(str(rank), bytes_text(size), f"{size / max(1, plan.total_bytes):.1%}", *memory)
    table.add_section()
    table.add_row("", bytes_text(plan.total_bytes), "unsharded")
    return table


def _memory_columns(graph: GraphPlan) -> dict[str, list[int]]:
    """What a graph takes of each rank's memory beside the weights."""
    kept = {"kept": graph.estimate.kept} if any(graph.estimate.kept) else {}
    return {**kept, "activations": graph.estimate.activations}


def phase_text(phase: str, phases: Iterable[str]) -> str:
    """What one of a plan's phases is called: only where steps follow it is a call a prefill."""
    return {"prefill": "prefill" if "decode" in phases else "call", "train": "training"}.get(phase, phase)


def _phase_text(graph: GraphPlan, plan: Plan) -> str:
    return phase_text(graph.phase, [each.phase for each in plan.graphs])


def _run_table(plan: Plan) -> Table:
    table = Table(title="one run of each graph", title_justify="left")
    unit = plan.graphs[0].estimate.unit
    each = f"{'an' if unit[0] in 'aeiou' else 'a'} {unit}"
    for heading in ("phase", f"{unit}s", "collectives", "bytes", each, "a layer", "time", "sending"):
        table.add_column(heading, justify="left" if heading in ("phase", "collectives") else "right")
    table.add_column("cheapest")
    for graph in plan.graphs:
        sent, tokens, layers = _sent(graph), graph.estimate.tokens, _layers(graph)
        counts = Counter(one.kind for one in graph.collectives)
        table.add_row(
            _phase_text(graph, plan),
            f"{tokens:,}",
            ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none",
            bytes_text(sent),
            bytes_text(sent // max(1, tokens)),
            bytes_text(_sent_in_layers(graph) // layers) if layers else "–",
            seconds_text(graph.estimate.seconds),
            f"{_share(graph):.0%}",
            "proven" if graph.optimal else "not proven",
        )
    return table


def _sent(graph: GraphPlan) -> int:
    return sum(one.bytes for one in graph.collectives)


def _share(graph: GraphPlan) -> float:
    return graph.estimate.messages / graph.estimate.seconds if graph.estimate.seconds else 0.0


def _layers(graph: GraphPlan) -> int:
    return len({layer_of(op.name) for op in graph.ops} - {""})


def _sent_in_layers(graph: GraphPlan) -> int:
    return sum(one.bytes for one in graph.collectives if layer_of(one.node))
