"""Collectives between processes that own several ranks each, and numbers that all of them have a part of."""

from __future__ import annotations

import torch

from tests.support.launches import Launched
from tests.support.two_ranks import DTYPES, value


def test_collectives_between_owners_of_several_ranks(two_processes: Launched) -> None:
    one, two = two_processes.results("collectives")
    reductions = {"sum": torch.sum, "max": torch.amax, "min": torch.amin, "product": torch.prod}
    whole = torch.stack([value(rank, torch.float32) for rank in range(3)])
    for rank, found in enumerate([*one, *two]):
        for how, reduction in reductions.items():
            for dtype in DTYPES:
                expected = reduction(whole.double(), 0).t().to(dtype)
                assert torch.equal(found[how, dtype], expected), (how, dtype)
        torch.testing.assert_close(found["avg", torch.float32], whole.mean(0).t())
        assert torch.equal(found["gather"], whole.flatten(0, 1))
        assert torch.equal(found["scatter"], whole.sum(0)[2 * rank : 2 * rank + 2])
        assert all(torch.equal(sent, whole[root]) for root, sent in enumerate(found["broadcast"]))
    for found in (one, two):
        assert found[0]["rows"].tolist() == [[0.0], [1.0], [2.0]]


def test_what_it_cannot_do(two_processes: Launched) -> None:
    two_processes.results("refused")
