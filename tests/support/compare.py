"""How far apart the results of a model and of its split twin are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

TOLERANCE = 1e-4  # of the scale of an output


def gradient_error(
    expected: Mapping[str, torch.Tensor | None], got: Mapping[str, torch.Tensor | None]
) -> float:
    """The largest difference of two gradients, relative to the largest number in that of the weight.

    Of a weight with gradients a thousand times smaller than others, relative to a thousandth of those: they
    are rounding errors. Where there is none, zeros are the same: that is what AOTAutograd makes of it.
    """
    expected = {name: value for name, value in expected.items() if value is None or value.numel()}
    largest = max((float(value.abs().max()) for value in expected.values() if value is not None), default=0.0)
    worst = 0.0
    for name, value in expected.items():
        other = got[name]
        left = torch.zeros(()) if value is None else value
        right = torch.zeros(()) if other is None else other
        scale = max(float(left.abs().max()), largest / 1e3, 1e-6)
        gap = float((left - right).abs().max()) / scale
        worst = max(worst, gap) if gap == gap else float("inf")
    return worst


def largest_error(expected: Any, got: Any) -> float:
    """The largest difference of two outputs, relative to the largest number of the tensor it is in."""
    worst = 0.0
    pairs = list(zip(tensors(expected), tensors(got), strict=True))
    for left, right in pairs:
        if left.shape != right.shape or left.dtype != right.dtype:
            raise ValueError(
                f"an output is {right.dtype} {list(right.shape)}, not {left.dtype} {list(left.shape)}"
            )
        if left.dtype.is_floating_point or left.dtype.is_complex:
            same = torch.equal(left.isfinite(), right.isfinite())
            scale = left[left.isfinite()].abs().max().item() if left.isfinite().any() else 1.0
            gap = (left - right)[left.isfinite() & right.isfinite()].abs()
            worst = max(
                worst, (gap.max().item() if gap.numel() else 0.0) / max(scale, 1e-6) if same else float("inf")
            )
        elif not torch.equal(left, right):
            worst = float("inf")
    return worst


def tensors(output: Any, kind: type[torch.Tensor] | None = None) -> list[torch.Tensor]:
    """The plain tensors in what a model returns, or those of a kind, which sharded ones are too."""
    values = list(output.values()) if isinstance(output, Mapping) else output
    leaves = [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
    return [leaf for leaf in leaves if kind is not None or type(leaf) is torch.Tensor]
