"""Numbers, dtypes and shapes as text, the same everywhere."""

from __future__ import annotations

from typing import Any

import torch


def dtype_text(dtype: torch.dtype) -> str:
    """float32 as f32"""
    name = str(dtype).removeprefix("torch.")
    for long, short in (("bfloat", "bf"), ("float", "f"), ("complex", "c"), ("uint", "u"), ("int", "i")):
        name = name.replace(long, short)
    return name


def counted(number: int, noun: str) -> str:
    """1 as 1 token, 2,048 as 2,048 tokens

    >>> counted(2048, "token")
    '2,048 tokens'
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def bytes_text(size: int) -> str:
    """524288 as 512 KiB"""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 2**power:
            return f"{size / 2**power:.4g} {unit}"
    return f"{size} B"


def seconds_text(seconds: float) -> str:
    """0.0123 as 12.3 ms

    >>> seconds_text(0.0123)
    '12.3 ms'
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def shape_text(value: Any) -> str:
    """A tensor's type as text, f32[2, 12, 64]; the type's name of anything else."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{dtype_text(value.dtype)}{list(value.shape)}"
