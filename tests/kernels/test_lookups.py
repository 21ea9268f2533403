"""Lookups and writes in a rank's rows: what the ranks make adds up to, or joins to, what the whole gives."""

from __future__ import annotations

import pytest
import torch

from tests.support.divisions import DIVISIONS
from tpfx.ir.shards import Pieces
from tpfx.kernels.lookups import (
    embedding_backward_shard,
    embedding_shard,
    gather_shard,
    place,
    scaled_shard,
    scatter_shard,
)
from tpfx.kernels.slices import join_shards, take

aten = torch.ops.aten
TABLE = torch.arange(12.0).view(6, 2) + 1
IDS = torch.tensor([[0, 5, 3], [3, 2, 4]])


@pytest.fixture(params=[name for name in DIVISIONS if name != "overlapping"])
def rows(request: pytest.FixtureRequest) -> tuple[Pieces, ...]:
    """Divisions in which each row has one owner, as sums over ranks need."""
    return DIVISIONS[request.param]


def test_place_says_where_ids_lie_and_which_are_others() -> None:
    ids = torch.tensor([0, 1, 2, 3, 4, 5])
    for owned in (*DIVISIONS["uneven"], *DIVISIONS["packed"], *DIVISIONS["overlapping"]):
        here, elsewhere = place(ids, owned, 6)
        held = [index for start, stop in owned for index in range(start, stop)]
        assert elsewhere.tolist() == [index not in held for index in range(6)]
        assert [int(here[index]) for index in held] == list(range(len(held)))


@pytest.mark.parametrize("owned", [((1, 4),), ((0, 1), (3, 4))])
def test_an_id_outside_the_whole_is_nobodys(owned: Pieces) -> None:
    """It stays outside the shard too, so that the lookup reports it, and is not taken for another rank's."""
    here, elsewhere = place(torch.tensor([-1, 6, 7]), owned, 6)
    length = sum(stop - start for start, stop in owned)
    assert not elsewhere.any()
    assert all(not 0 <= int(at) < length for at in here)
    with pytest.raises(IndexError, match="index out of range"):
        embedding_shard(TABLE[:length], torch.tensor([6]), owned, 6)


def test_embedding(rows: tuple[Pieces, ...]) -> None:
    found = [embedding_shard(take(TABLE, ((0, rows),), rank), IDS, rows[rank], 6) for rank in range(3)]
    assert sum(found[1:], found[0]).tolist() == TABLE[IDS].tolist()
    for rank, owned in enumerate(rows):
        held = torch.tensor([any(a <= int(one) < b for a, b in owned) for one in IDS.flatten()]).view(2, 3)
        assert not found[rank][~held].any(), "zeros for the rows of others"


def test_embedding_backward(rows: tuple[Pieces, ...]) -> None:
    gradient = torch.arange(12.0).view(2, 3, 2)
    for padding in (-1, 3):
        whole = aten.embedding_dense_backward(gradient, IDS, 6, padding, False)
        found = [embedding_backward_shard(gradient, IDS, padding, owned, 6) for owned in rows]
        assert join_shards(found, ((0, rows),), (6, 2)).tolist() == whole.tolist()


@pytest.mark.parametrize("dim", [0, 1])
def test_gather(rows: tuple[Pieces, ...], dim: int) -> None:
    value = torch.arange(36).view(6, 6) + 1
    index = torch.tensor([[0, 5, 3, 3, 1, 2], [4, 4, 0, 1, 5, 2]])
    index = index if dim == 0 else index.t().contiguous()
    found = [gather_shard(take(value, ((dim, rows),), rank), dim, index, rows[rank], 6) for rank in range(3)]
    assert sum(found[1:], found[0]).tolist() == value.gather(dim, index).tolist()


@pytest.mark.parametrize("dim", [0, 1])
def test_scatter(rows: tuple[Pieces, ...], dim: int) -> None:
    target = torch.arange(36.0).view(6, 6)
    index = torch.tensor([[0, 5, 3, 3, 1, 2], [4, 4, 0, 1, 5, 0]])
    source = -torch.arange(12.0).view(2, 6) - 1
    if dim == 1:
        index, source = index.t().contiguous(), source.t().contiguous()
    where = ((dim, rows),)
    for op, rest in (
        (aten.scatter.src, source),
        (aten.scatter.value, 7.0),
        (aten.scatter_add.default, source),
    ):
        before = target.clone()
        found = [
            scatter_shard(op, take(target, where, rank), dim, index, rest, owned=rows[rank], size=6)
            for rank in range(3)
        ]
        assert join_shards(found, where, (6, 6)).tolist() == op(target, dim, index, rest).tolist()
        assert torch.equal(target, before), "the operand is left alone"


def test_numbers_are_scaled_by_the_blocks_in_which_they_lie(rows: tuple[Pieces, ...]) -> None:
    numbers, scales = torch.tensor([0, 2, 1, 1, 0, 2], dtype=torch.uint8), torch.tensor([1.0, 10.0])
    table = torch.tensor([1.0, 2.0, 3.0])
    whole = torch.tensor([1, 3, 2, 2, 10, 30], dtype=torch.float64)
    for rank, owned in enumerate(rows):
        shard = take(numbers, ((0, rows),), rank)
        made = scaled_shard(shard, scales, table, 4, torch.float64, owned)
        assert torch.equal(made, take(whole, ((0, rows),), rank))
