"""What is timed of a model that generates text: `PHASES["decode"](model, ids)` gives seconds.

Also runs in the peer's environment, so it needs nothing of tpfx.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

BEAMS = 5


def tokens(model: Any, ids: torch.Tensor, count: int, beams: int = 1) -> torch.Tensor:
    """`count` tokens after the prompt `ids`, the likeliest ones."""
    result: torch.Tensor = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, num_beams=beams
    )
    return result


def prefill(model: Any, ids: torch.Tensor) -> float:
    """Seconds of one forward over the prompt that keeps keys and values."""
    with torch.no_grad():
        start = time.perf_counter()
        model(ids, attention_mask=torch.ones_like(ids), use_cache=True)
        return time.perf_counter() - start


def _per_token(model: Any, ids: torch.Tensor, counts: tuple[int, int], beams: int) -> float:
    """Seconds that one more token takes: the difference of a long and a short text, so without the prompt."""
    seconds = []
    for count in counts:
        start = time.perf_counter()
        tokens(model, ids, count, beams)
        seconds.append(time.perf_counter() - start)
    return (seconds[1] - seconds[0]) / (counts[1] - counts[0])


def decode(model: Any, ids: torch.Tensor) -> float:
    """Seconds a token of greedy search."""
    return _per_token(model, ids, (4, 28), beams=1)


def beams(model: Any, ids: torch.Tensor) -> float:
    """Seconds a token of a search with five beams."""
    return _per_token(model, ids, (2, 14), beams=BEAMS)


PHASES: dict[str, Callable[[Any, torch.Tensor], float]] = {
    "prefill": prefill,
    "decode": decode,
    "beams": beams,
}
