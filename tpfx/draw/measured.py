"""What a profile has measured of one call, for the page to draw beside the estimate.

The file is JSON: a list of spans, each what one rank did for a while, in any order.

    [{"rank": 0, "layer": "layers.0", "kind": "compute", "start": 0.0, "seconds": 0.0004}, …]

`layer` is a name as in a dump, empty outside of layers; `kind` is "compute", "collective" or "wait";
`start`, from the beginning of the call on, and `seconds` are seconds, by one clock for all ranks. A span may
have a `phase`, "prefill", "decode" or "train"; without one it is of the first call.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import InputError

Kind = Literal["compute", "collective", "wait"]


@dataclass(frozen=True)
class Span:
    """What one rank did for a while; see above."""

    rank: int
    layer: str
    kind: Kind
    start: float
    seconds: float
    phase: str = ""


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
    spans = found.get("spans") if isinstance(found, dict) else found
    if not isinstance(spans, list) or not spans:
        raise InputError(f"{path} is no profile: it has to be a list of spans, of one at least")
    return [_span(one, at, path) for at, one in enumerate(spans)]


def _span(one: Any, at: int, path: Path) -> Span:
    where = f"{path} is no profile: its span {at}"
    try:
        seconds = float(one["start"]), float(one["seconds"])
        phase = str(one.get("phase", ""))
        span = Span(int(one["rank"]), str(one["layer"]), one["kind"], *seconds, phase)
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
