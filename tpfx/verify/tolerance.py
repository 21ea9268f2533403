"""Whether a value of a split graph is the unsharded one, and in numbers how it is not.

expected = shard_of(whole, shards_of(node), rank)   # what a rank should have
difference(value, expected)                         # None, or "off by 0.31 at [0, 3, 7]: …"
"""

from __future__ import annotations

from typing import Any

import torch

from ..formatting import shape_text

# How far a number may be off, at worst, by the largest magnitude beside it.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.complex128: 1e-9,
    torch.float32: 1e-4,
    torch.complex64: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}

# Numbers above this stand for infinity, in masks: they must not make the difference of others look small.
HUGE = 1e30


def difference(value: Any, expected: Any, noise: float = 0.0) -> str | None:
    """How a value differs from what is expected, in words; None where it does not.

    Integers and booleans must be the same, other numbers up to `TOLERANCE` of the largest magnitude expected,
    or up to `noise`. Infinities and NaNs must be in the same places.
    """
    if not isinstance(expected, torch.Tensor):
        return None if value == expected else f"{value}, unsharded {expected}"
    if not isinstance(value, torch.Tensor) or value.dtype != expected.dtype or value.shape != expected.shape:
        return f"{shape_text(value)} where {shape_text(expected)} should be"
    off, largest = _distance(value, expected), _largest(expected)
    if expected.dtype in TOLERANCE:
        own = expected.abs().double()
        magnitude = torch.where(_usual(own), largest, own.nan_to_num(posinf=0.0))
        wrong = off > (magnitude * TOLERANCE[expected.dtype]).clamp(min=noise)
    else:
        wrong = value != expected
    if not bool(wrong.any()):
        return None
    worst = int(torch.where(wrong, off, -1.0).argmax())
    at = [int(index) for index in torch.unravel_index(torch.tensor(worst), off.shape)]
    return (
        f"{_number(value, worst)} at {at}, unsharded {_number(expected, worst)}; {int(wrong.sum())} of "
        f"{wrong.numel()} numbers are wrong, of which the largest should be {largest:.4g}"
    )


def distance(value: torch.Tensor, other: torch.Tensor) -> float:
    """How far apart two tensors are at most, where both have finite numbers; 0 for other shapes."""
    off = _distance(value, other) if value.shape == other.shape else torch.zeros(0)
    finite = off[off < HUGE]
    return float(finite.max()) if finite.numel() else 0.0


def _distance(value: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How far each number is from what is expected."""
    wide = torch.complex128 if expected.is_complex() else torch.float64
    mine, theirs = value.to(wide), expected.to(wide)
    off = (mine - theirs).abs().nan_to_num(nan=torch.inf)
    return off.masked_fill((mine == theirs) | (mine.isnan() & theirs.isnan()), 0.0)


def _usual(magnitudes: torch.Tensor) -> torch.Tensor:
    return magnitudes < HUGE  # which is not so of NaNs


def _largest(expected: torch.Tensor) -> float:
    """The largest magnitude, but for huge ones."""
    own = (expected if expected.is_complex() else expected.double()).abs()
    usual = own[_usual(own)]
    return float(usual.max()) if usual.numel() else 0.0


def _number(values: torch.Tensor, at: int) -> str:
    number = values.flatten()[at].item()
    return f"{number:.4g}" if isinstance(number, (float, complex)) else str(number)
