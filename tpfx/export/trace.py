"""Runs as spans of time on each rank: for chrome://tracing, and for `Profile.to_dict`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .profile_times import NANO
from .timeline import GraphRuns, Op

WAITING, COMPUTE = "waiting", "compute"
MICRO = 1e-3  # of nanoseconds


class Span(NamedTuple):
    """What a rank does for a while; `kind` is "compute", "waiting", or a collective's. In nanoseconds."""

    op: Op
    kind: str
    start: int
    length: int


def spans(graph: GraphRuns, rank: int, waited: torch.Tensor, run: int) -> Iterator[Span]:
    """What a rank, by its place, did in one run."""
    one = graph.ranks[rank]
    starts, waits = one.starts[run].tolist(), waited[run].tolist()
    for op, start, end, wait in zip(one.ops, starts, starts[1:], waits, strict=False):
        if wait:
            yield Span(op, WAITING, start, wait)
        yield Span(op, op.collective or COMPUTE, start + wait, end - start - wait)
    tail = int(one.over[run]) - starts[-1]
    if tail > 0:
        yield Span(Op("the end of the graph", "", "end"), WAITING, starts[-1], tail)


def chrome_trace(models: Mapping[str, Sequence[GraphRuns]], origin: int) -> dict[str, Any]:
    """All runs, in the format that chrome://tracing and Perfetto read: a row for each rank.

    Args:
        models: of each, by its name, the graphs that ran.
        origin: the time that is 0, in nanoseconds.
    """
    events: list[dict[str, Any]] = []
    for at, (name, graphs) in enumerate(models.items()):
        events.append({"ph": "M", "name": "process_name", "pid": at, "args": {"name": name}})
        for one in graphs[0].ranks if graphs else ():
            about = {"name": f"rank {one.rank} ({one.device})"}
            events.append({"ph": "M", "name": "thread_name", "pid": at, "tid": one.rank, "args": about})
        events += _events(graphs, at, origin)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _events(graphs: Sequence[GraphRuns], model: int, origin: int) -> Iterator[dict[str, Any]]:
    for number, graph in enumerate(graphs):
        waited = graph.waited()
        for at, one in enumerate(graph.ranks):
            row = {"ph": "X", "pid": model, "tid": one.rank}
            for run in range(graph.count):
                start, end = int(one.starts[run, 0]), int(one.over[run])
                name = f"graph {number}, {graph.phase}, run {run}"
                yield {**row, "name": name, "cat": "graph", **_when(start - origin, end - start)}
                for span in spans(graph, at, waited[at], run):
                    called = WAITING if span.kind == WAITING else span.op.name
                    when = _when(span.start - origin, span.length)
                    about = {"node": span.op.name, "op": span.op.op, "module": span.op.module}
                    yield {**row, "name": called, "cat": span.kind, **when, "args": about}


def _when(start: int, length: int) -> dict[str, float]:
    return {"ts": start * MICRO, "dur": length * MICRO}


def timeline(graph: GraphRuns) -> dict[str, Any]:
    """One run of a graph, that of median length, as `Profile.to_dict` has it."""
    begins = torch.stack([one.starts[:, 0] for one in graph.ranks]).amin(0)
    lengths = torch.stack([one.over for one in graph.ranks]).amax(0) - begins
    run = int(lengths.argsort()[(len(lengths) - 1) // 2])
    begin, waited = int(begins[run]), graph.waited()
    return {
        "phase": graph.phase,
        "runs": graph.count,
        "seconds": int(lengths[run]) * NANO,
        "ranks": [
            {
                "rank": one.rank,
                "spans": [
                    {
                        "name": span.op.name,
                        "op": span.op.op,
                        "module": span.op.module,
                        "kind": span.kind,
                        "start": (span.start - begin) * NANO,
                        "seconds": span.length * NANO,
                    }
                    for span in spans(graph, at, waited[at], run)
                ],
            }
            for at, one in enumerate(graph.ranks)
        ],
    }
