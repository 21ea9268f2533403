"""What a rank's graph calls to communicate: gathering uneven shards, random numbers of one rank, sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.divisions import DIVISIONS
from tpfx.ir.shards import SplitDims
from tpfx.kernels.collectives import (
    broadcast_again,
    broadcast_and_keep,
    broadcast_random,
    combine_partials,
    gather_shards,
)
from tpfx.kernels.slices import take, take_unfolded
from tpfx.runtime.mesh import Mesh
from tpfx.runtime.thread_runtime import Runtime

aten = torch.ops.aten


def on_ranks(call: Callable[[int, str], Any]) -> list[Any]:
    """A function of a rank and its group's name, run on three ranks at once."""
    runtime = Runtime(Mesh((torch.device("cpu"),) * 3), timeout=30.0)
    try:
        names = [runtime.mesh.group_name(rank) for rank in range(3)]
        return runtime.run([lambda rank=rank: call(rank, names[rank]) for rank in range(3)])  # type: ignore[misc]
    finally:
        runtime.close()


@pytest.mark.parametrize("name", DIVISIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_every_rank_gets_the_whole(name: str, dtype: torch.dtype) -> None:
    whole = (torch.arange(24).view(4, 6) % 5).to(dtype)
    where: SplitDims = ((1, DIVISIONS[name]),)

    def call(rank: int, group: str) -> torch.Tensor:
        return gather_shards(take(whole, where, rank), where, [-1, 6], rank, 3, group, ())

    for found in on_ranks(call):
        assert found.dtype is dtype and found.tolist() == whole.tolist()


def test_shards_of_a_dimension_of_a_varying_size() -> None:
    """[(s:3 h:6) d:2], split by heads: the positions are not known to the graph."""
    whole = torch.arange(36).view(18, 2)
    where, unfolding = ((1, DIVISIONS["packed"]),), ((0, (-1, 6)),)

    def call(rank: int, group: str) -> torch.Tensor:
        shard = take_unfolded(whole, where, rank, unfolding)
        return gather_shards(shard, where, [-1, 6, 2], rank, 3, group, unfolding)

    assert [found.tolist() for found in on_ranks(call)] == [whole.tolist()] * 3


def test_one_rank_draws_for_all() -> None:
    """From the caller's generator, as the unsharded op would; the others do not touch it."""
    torch.manual_seed(3)
    expected = torch.rand(2, 3), torch.rand(1)
    torch.manual_seed(3)
    given = (torch.zeros(2, 3),)
    found = on_ranks(
        lambda rank, group: broadcast_random(rank == 0, group, aten.rand_like.default, given, {})
    )
    assert [one.tolist() for one in found] == [expected[0].tolist()] * 3
    assert torch.rand(1).tolist() == expected[1].tolist()


def test_booleans_and_several_results_are_drawn() -> None:
    given = (torch.ones(4, 5), 0.5, True)
    torch.manual_seed(5)
    expected = [value.tolist() for value in aten.native_dropout.default(torch.ones(4, 5), 0.5, True)]
    torch.manual_seed(5)
    for found in on_ranks(
        lambda rank, group: broadcast_random(rank == 0, group, aten.native_dropout.default, given, {})
    ):
        assert [value.tolist() for value in found] == expected and found[1].dtype is torch.bool


def test_one_rank_draws_again_for_all() -> None:
    """From a state that was kept; the generator goes on where it was."""

    def call(rank: int, group: str) -> tuple[torch.Tensor, torch.Tensor]:
        op, given = aten.rand_like.default, (torch.zeros(2, 3),)
        state, first = broadcast_and_keep(rank == 0, group, op, given, {})
        broadcast_random(rank == 0, group, op, given, {})
        return first, broadcast_again(rank == 0, group, state, op, given, {})

    torch.manual_seed(3)
    expected = torch.rand(2, 3).tolist(), torch.rand(2, 3), torch.rand(1).tolist()
    torch.manual_seed(3)
    assert [(first.tolist(), again.tolist()) for first, again in on_ranks(call)] == [(expected[0],) * 2] * 3
    assert torch.rand(1).tolist() == expected[2]


@pytest.mark.parametrize(("op", "expected"), [("sum", [6, 1, 12]), ("max", [4, 7, 6]), ("min", [-1, -5, 2])])
def test_combined_partials(op: str, expected: list[int]) -> None:
    partials = [torch.tensor([3, -5, 4]), torch.tensor([4, -1, 6]), torch.tensor([-1, 7, 2])]
    assert combine_partials(partials, op).tolist() == expected
