"""Weights packed into words in any way are divided, or run whole; the model computes what it did."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

import tpfx
from tests.support.packings import Between, Packing


def share(seed: int, devices: int) -> float:
    """A model of a random format computes right: the largest share of a device, times the devices."""
    packing = Packing.drawn(random.Random(seed))
    expected = Between(packing, seed)
    with torch.no_grad():
        whole = expected(expected.x)
        model = tpfx.compile(Between(packing, seed), ["cpu"] * devices, example_inputs=(expected.x,))
        got = model(expected.x)
    assert torch.isfinite(whole).all() and whole.abs().max() > 0, packing
    torch.testing.assert_close(got, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()), msg=str(packing))
    report = tpfx.report(model)
    return max(report.bytes_per_device) * devices / report.total_bytes


@pytest.mark.parametrize("seed", range(4))
def test_a_random_format(seed: int) -> None:
    share(seed, 2 + seed % 2)


@pytest.mark.slow
def test_random_formats() -> None:
    shares = Counter(round(share(seed, 2 + seed % 2), 1) for seed in range(500))
    print(sorted(shares.items()))
