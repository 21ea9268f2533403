"""Shards of tensors: taken, joined, unfolded and laid out, index by index."""

from __future__ import annotations

import pytest
import torch

from tests.support.divisions import DIVISIONS
from tpfx.ir.shards import Pieces, Shards, SplitDims
from tpfx.kernels.slices import (
    fold,
    join_shards,
    local_shape,
    restride,
    shard_of,
    shard_pieces,
    take,
    take_unfolded,
    unfold_shard,
    whole_shape,
)

WHOLE = torch.arange(24).view(6, 4)


@pytest.fixture(params=list(DIVISIONS))
def rows(request: pytest.FixtureRequest) -> tuple[Pieces, ...]:
    return DIVISIONS[request.param]


def test_a_shard_has_the_rows_of_its_intervals(rows: tuple[Pieces, ...]) -> None:
    for rank, owned in enumerate(rows):
        expected = [row for start, stop in owned for row in WHOLE[start:stop].tolist()]
        shard = take(WHOLE, ((0, rows),), rank)
        assert shard.tolist() == expected and shard.shape == (len(expected), 4)
        assert list(shard.shape) == local_shape(WHOLE.shape, ((0, rows),), rank)


@pytest.mark.parametrize("dim", [0, 1])
def test_shards_join_to_the_whole(rows: tuple[Pieces, ...], dim: int) -> None:
    whole, where = WHOLE if dim == 0 else WHOLE.t(), ((dim, rows),)
    shards = [take(whole, where, rank) for rank in range(3)]
    assert join_shards(shards, where, whole.shape).tolist() == whole.tolist()
    assert {tuple(whole_shape(shard.shape, where)) for shard in shards} == {tuple(whole.shape)}


def test_shards_of_two_dimensions_join_to_the_whole() -> None:
    upper, lower = ((0, 1),), ((1, 6),)
    left, right = ((0, 1), (3, 4)), ((1, 3),)
    where = ((0, (upper, upper, lower, lower)), (1, (left, right, left, right)))
    shards = [take(WHOLE, where, rank) for rank in range(4)]
    assert shards[2].tolist() == WHOLE[1:][:, [0, 3]].tolist()
    assert join_shards(shards, where, WHOLE.shape).tolist() == WHOLE.tolist()


def test_a_shard_of_one_interval_is_a_view_and_others_are_not() -> None:
    assert take(WHOLE, ((0, DIVISIONS["uneven"]),), 1).data_ptr() == WHOLE[1:].data_ptr()
    packed = take(WHOLE, ((0, DIVISIONS["packed"]),), 1)
    packed.fill_(-1)
    assert int(WHOLE.min()) == 0


@pytest.mark.parametrize("rows_at_once", [1, 2, 100])
def test_boxes_cover_a_shard_once(rows: tuple[Pieces, ...], rows_at_once: int) -> None:
    """Each box says where a piece lies in the whole and in the shard, of so many rows at most."""
    where: SplitDims = ((0, rows),)
    for rank in range(3):
        shard = torch.full(local_shape(WHOLE.shape, where, rank), -1)
        for there, here in shard_pieces(WHOLE.shape, where, rank, rows_at_once):
            assert 0 < there[0].stop - there[0].start <= rows_at_once
            assert bool((shard[here] == -1).all()), "no index is written twice"
            shard[here] = WHOLE[there]
        assert shard.tolist() == take(WHOLE, where, rank).tolist()


def test_boxes_of_a_dimension_that_is_not_first() -> None:
    columns = (((0, 1), (2, 3)), ((1, 2),), ((3, 4),))
    shard = torch.full((6, 2), -1)
    found = list(shard_pieces(WHOLE.shape, ((1, columns),), 0, 4))
    assert len(found) == 4, "two blocks of rows, each of two intervals"
    for there, here in found:
        shard[here] = WHOLE[there]
    assert shard.tolist() == WHOLE[:, [0, 2]].tolist()


def test_a_product_of_a_varying_size_is_taken_apart() -> None:
    """[(s:3 h:6)]: the heads of every position."""
    flat = torch.arange(18)
    unfolding, where = ((0, (-1, 6)),), ((1, DIVISIONS["packed"]),)
    shard = take_unfolded(flat, where, 2, unfolding)
    assert shard.tolist() == [2, 5, 8, 11, 14, 17]
    apart = unfold_shard(shard, where, 2, unfolding)
    assert apart.tolist() == [[2, 5], [8, 11], [14, 17]]
    assert fold(apart, unfolding).tolist() == shard.tolist()
    assert shard_of(flat, Shards(where, unfolding), 2).tolist() == shard.tolist()
    assert take_unfolded(flat, ((1, DIVISIONS["one rank has it all"]),), 0, unfolding).shape == (0,)


def test_part_of_takes_what_a_layout_says() -> None:
    assert shard_of(WHOLE, Shards(), 1) is WHOLE
    assert shard_of(WHOLE, Shards(((0, DIVISIONS["uneven"]),)), 2).tolist() == WHOLE[4:].tolist()


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((2, 3), (3, 1), 0),
        ((2, 3), (1, 2), 0),
        ((2, 3), (8, 2), 5),
        ((2, 3), (0, 1), 1),
        ((0, 3), (3, 1), 2),
        ((), (), 4),
    ],
)
def test_relaid_has_the_same_numbers_elsewhere(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    tensor = torch.arange(6.0)[: torch.Size(shape).numel()].view(shape)
    if stride and stride[0] == 0:
        tensor = tensor[:1].expand(shape)
    made = restride(tensor, stride, offset)
    assert (made.shape, made.stride(), made.storage_offset()) == (shape, stride, offset)
    assert made.tolist() == tensor.tolist()


def test_what_lies_so_already_is_returned() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    assert restride(tensor, (3, 1), 0) is tensor
