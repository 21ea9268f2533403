"""What is timed of a model that writes text or is trained: `PHASES["decode"](model, ids)` gives seconds.

Also runs in the peer's environment, so it needs nothing of tpfx.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
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


def backward(model: Any, ids: torch.Tensor) -> float:
    """Seconds of a loss and its gradients."""
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return time.perf_counter() - start


_optimizers: weakref.WeakKeyDictionary[Any, torch.optim.Optimizer] = weakref.WeakKeyDictionary()


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    """The AdamW of a model, whose state lives as long as the model."""
    if model not in _optimizers:
        _optimizers[model] = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)  # as Trainer
    return _optimizers[model]


def step(model: Any, ids: torch.Tensor) -> float:
    """Seconds of a whole training step: loss, gradients, AdamW."""
    optimizer = optimizer_of(model)
    seconds = backward(model, ids)
    start = time.perf_counter()
    optimizer.step()
    return seconds + time.perf_counter() - start


def bytes_held(model: Any) -> list[int]:
    """Bytes of weights, gradients and AdamW's state on each device, or in all for an unsharded model.

    Counted from the tensors: those of tpfx know what lies where; tensor_parallel has a module a rank.
    """
    inner = getattr(model, "wrapped_model", model)
    held: list[int] = []
    for first, module in enumerate(getattr(inner, "module_shards", [model])):
        for weight in module.parameters():
            state = optimizer_of(model).state.get(weight, {})
            for tensor in (weight, weight.grad, *state.values()):
                for rank, size in enumerate(_sizes(tensor), first):
                    held += [0] * (rank + 1 - len(held))
                    held[rank] += size
    return held


def _sizes(tensor: Any) -> Sequence[int]:
    if not isinstance(tensor, torch.Tensor):
        return ()
    return getattr(tensor, "resident_bytes", (tensor.numel() * tensor.element_size(),))


WRITING = ("prefill", "decode", "beams")
TRAINING = ("backward", "step")
PHASES: dict[str, Callable[[Any, torch.Tensor], float]] = {
    "prefill": prefill,
    "decode": decode,
    "beams": beams,
    "backward": backward,
    "step": step,
}
