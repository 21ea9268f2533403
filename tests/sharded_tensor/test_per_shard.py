"""Operands to ranks, a call for each: what is moved, and what is not."""

from __future__ import annotations

import torch

from tests.support.sharded import MESH, PLACEMENTS, SHAPE, sharded
from tpfx.sharded_tensor.per_shard import on_each, replicate_argument, shard_argument

ROWS = PLACEMENTS["rows"]
assert ROWS is not None


def test_an_operand_that_lies_so_already_is_not_touched() -> None:
    x, y = (sharded(torch.randn(SHAPE), ROWS) for _ in range(2))
    assert shard_argument(y, x, ROWS.dims) is y.shards


def test_a_replicated_operand_is_cut_where_it_lies() -> None:
    x, y = sharded(torch.randn(SHAPE), ROWS), sharded(torch.randn(SHAPE), PLACEMENTS["replicated"])
    assert y.shards is not None
    for shard, whole, rows in zip(
        shard_argument(y, x, ROWS.dims), y.shards, (slice(0, 3), slice(3, 4)), strict=True
    ):
        assert torch.equal(shard, whole[rows]) and shard.data_ptr() == whole[rows].data_ptr()


def test_an_operand_that_lies_otherwise_is_gathered_and_cut() -> None:
    x, y = sharded(torch.randn(SHAPE), ROWS), sharded(torch.randn(SHAPE), PLACEMENTS["packed"])
    shards = shard_argument(y, x, ROWS.dims)
    assert torch.equal(torch.cat(list(shards)), y.full())


def test_what_every_rank_needs_whole() -> None:
    x, index = sharded(torch.randn(SHAPE), ROWS), torch.tensor([1])
    assert replicate_argument(3, x) == (3, 3) and replicate_argument(x, x) is x.shards
    assert replicate_argument([index, None], x) == [(index, None)] * 2
    assert replicate_argument([], x) == [()] * 2


def test_a_call_for_each_rank_with_its_own_arguments() -> None:
    assert on_each(MESH, divmod, [(7, 9), (2, 4)]) == [(3, 1), (2, 1)]
