"""What a profile has measured, for the page to draw beside the estimate.

The file is what `tpfx.profile(…).save(path)` writes, or a list of spans, each what one rank did for a while:

    [{"rank": 0, "layer": "layers.0", "kind": "compute", "start": 0.0, "seconds": 0.0004}, …]

`layer` is the path of a module, or a part of it, empty outside of layers; `kind` is "compute", "collective"
or "wait"; `start`, from the beginning of the call on, and `seconds` are seconds, by one clock for all ranks.
A span may have a `graph`: the number of the plan's graph that it is of, from 0 on; without one, the first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import InputError
from ..ir.provenance import layer_of

Kind = Literal["compute", "collective", "wait"]


@dataclass(frozen=True)
class Span:
    """What one rank did for a while; see above."""

    rank: int
    layer: str
    kind: Kind
    start: float
    seconds: float
    graph: int = 0


def read_spans(path: Path) -> list[Span]:
    """The spans of a file.

    Raises:
        InputError: there is no such file, or it is no profile.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the profile {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    saved = isinstance(found, dict) and "timeline" in found
    spans = _of_saved(found["timeline"], path) if saved else found
    if not isinstance(spans, list) or not spans:
        raise InputError(f"{path} is no profile: it has to be a list of spans, of one at least")
    return [_span(one, at, path) for at, one in enumerate(spans)]


def _of_saved(timeline: Any, path: Path) -> list[dict[str, Any]]:
    """The spans of what `tpfx.profile` has saved: forward passes are graphs in their order, a backward pass
    belongs to the forward pass before it, and begins when that is over."""
    kinds, graph, before, spans = {"compute": "compute", "waiting": "wait"}, -1, 0.0, list[dict[str, Any]]()
    try:
        for run in timeline:
            backward = run["phase"] == "backward"
            graph, before = max(0, graph + (not backward)), before * backward
            for one in (one | {"rank": rank["rank"]} for rank in run["ranks"] for one in rank["spans"]):
                layer = layer_of(one["module"]) or one["module"]
                about = {"layer": layer + ", backward" * (backward and bool(layer)), "graph": graph}
                kind = kinds.get(one["kind"], "collective")
                spans.append(one | about | {"kind": kind, "start": max(0.0, one["start"]) + before})
            before += run["seconds"]
    except (AttributeError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} is no profile that this tpfx has saved: {what}; save it anew") from error
    return spans


def _span(one: Any, at: int, path: Path) -> Span:
    where = f"{path} is no profile: its span {at}"
    try:
        seconds = float(one["start"]), float(one["seconds"])
        graph = int(one.get("graph", 0))
        span = Span(int(one["rank"]), str(one["layer"]), one["kind"], *seconds, graph)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        fields = "rank, layer, kind, start or seconds"
        raise InputError(f"{where} lacks {fields}, or has something else there: {str(one)[:200]}") from error
    if span.rank < 0 or span.kind not in get_args(Kind) or not _are_times(*seconds):
        raise InputError(
            f"{where} has rank {span.rank}, kind {span.kind!r}, start {span.start}, seconds {span.seconds}; "
            f"ranks and times are not negative, a kind is {', '.join(get_args(Kind))}"
        )
    return span


def devices_of(spans: Sequence[Span]) -> int:
    """How many ranks were measured."""
    return max((span.rank + 1 for span in spans), default=0)


def _are_times(*seconds: float) -> bool:
    return all(math.isfinite(each) and each >= 0 for each in seconds)
