"""Divisions of axes made concrete: every index lies where the layout says, whatever the structure."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tpfx.ir.axes import Dim, find, product
from tpfx.ir.axes_text import read
from tpfx.ir.layout import Split, carries, local_size, partitions, splittable, unfold
from tpfx.ir.shards import Shards, concrete, count_below, pieces
from tpfx.kernels.slices import join_shards, local_shape, take, take_unfolded

# Tensors that carry `a`, of 6, in many ways; those with `g` also an axis around it.
TENSORS = (
    "a:6",
    "a:6 b:2",
    "b:2 (a:6 c:3)",
    "(c:3 a:6) b:2",
    "(c:2 a:6 b:3)",
    "[a:6|b:4]",
    "[(a:6 c:2)|(a c)|(a b:3)]",
    "([a:6|b:2] c:3) d:2",
    "([a:6|g:2] c:3)",
    "(g:2 a:6) [g|b:3]",
    "[(g:2 a:6 b:2)|(g c:3)]",
    "g:2 b:3",
)


@st.composite
def divided(draw: Any) -> tuple[list[Dim], Split, int]:
    """A tensor's dimensions, an uneven division of one axis or two, ranks with nothing among them."""
    names: dict[str, Dim] = {"a": Dim(6), "g": Dim(2)}
    dims = read(draw(st.sampled_from(TENSORS)), names)
    inner, outer = find(names["a"]), find(names["g"])
    if draw(st.booleans()):
        sizes = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
        cuts = sorted(min(6, sum(sizes[:index])) for index in range(1, len(sizes)))
        split = Split((inner,))
        split.divide([stop - start for start, stop in zip([0, *cuts], [*cuts, 6], strict=True)])
        return dims, split, len(sizes)
    split = Split((outer, inner))
    sizes = draw(
        st.sampled_from([(12,), (6, 6), (4, 2, 6), (6, 1, 5), (2, 3, 1, 5, 1), (12, 0), (0, 6, 6, 0)])
    )
    split.divide(sizes)
    return dims, split, len(sizes)


def whole_of(dims: list[Dim]) -> torch.Tensor:
    shape = torch.Size([int(find(dim).size) for dim in dims])
    return torch.arange(shape.numel()).reshape(shape)


@given(divided())
def test_parts_join_to_the_whole(drawn: tuple[list[Dim], Split, int]) -> None:
    dims, split, ranks = drawn
    assume(splittable(dims, split))
    whole, where = whole_of(dims), concrete(dims, split).dims
    shards = [take(whole, where, rank) for rank in range(ranks)]
    assert torch.equal(join_shards(shards, where, whole.shape), whole)
    for rank, shard in enumerate(shards):
        assert list(shard.shape) == local_shape(whole.shape, where, rank)
        assert list(shard.shape) == [local_size(dim, split, rank) for dim in dims]


@given(divided())
def test_pieces_are_ordered_apart_and_inside(drawn: tuple[list[Dim], Split, int]) -> None:
    dims, split, ranks = drawn
    for dim in dims:
        if splittable([dim], split):
            for rank in range(ranks):
                ends = [end for interval in pieces(dim, split, rank) for end in interval]
                assert ends == sorted(set(ends))
                assert not ends or (ends[0] >= 0 and ends[-1] <= find(dim).size)


@given(divided())
def test_partition_has_every_index_once(drawn: tuple[list[Dim], Split, int]) -> None:
    dims, split, ranks = drawn
    assume(splittable(dims, split))
    held = torch.cat(
        [take(whole_of(dims), concrete(dims, split).dims, rank).flatten() for rank in range(ranks)]
    )
    times = torch.bincount(held)
    assert (
        times.min() >= 1
    )  # nothing is lost, and where the split partitions the tensor nothing is there twice
    assert not partitions(dims, split) or bool((times == 1).all())


@given(divided(), st.integers(0, 40))
def test_count_below(drawn: tuple[list[Dim], Split, int], offset: int) -> None:
    dims, split, ranks = drawn
    for rank in range(ranks):
        owned = pieces(dims[0], split, rank)
        indices = [index for start, stop in owned for index in range(start, stop)]
        assert count_below(owned, offset) == sum(index < offset for index in indices)


@given(divided())
def test_mean_share_is_what_ranks_hold_at_least(drawn: tuple[list[Dim], Split, int]) -> None:
    dims, split, ranks = drawn
    carried = [axis for axis in split.axes if any(carries(dim, Split((axis,))) for dim in dims)]
    share = split.mean_share(dims, ranks)
    assert 1 / ranks <= share <= 1
    assert carried or share == 1


@pytest.mark.parametrize(
    ("sizes", "fits"),
    [
        ((6, 6), True),
        ((12, 0), True),
        ((4, 2, 6), True),
        ((4, 8), False),
        ((5, 5, 2), False),
        ((6, 5), False),
    ],
)
def test_no_rank_gets_parts_of_two_outer_units(sizes: tuple[int, ...], fits: bool) -> None:
    split = Split((Dim(2), Dim(6)))
    assert split.fits(sizes) == fits
    if not fits:
        with pytest.raises(AssertionError, match="12 units cannot be divided as"):
            split.divide(sizes)


def test_ranks_that_share_an_outer_unit_hold_the_same() -> None:
    """Two KV heads on three ranks: two of them hold head 0, and each some of its query heads."""
    names: dict[str, Dim] = {}
    queries, keys = read("(kv:2 rep:4) (kv d:3)", names)
    split = Split((names["kv"], names["rep"]))
    split.divide((1, 3, 4))
    assert [pieces(queries, split, rank) for rank in range(3)] == [((0, 1),), ((1, 4),), ((4, 8),)]
    assert [pieces(keys, split, rank) for rank in range(3)] == [((0, 3),), ((0, 3),), ((3, 6),)]
    assert split.mean_share([keys], 3) == 1 / 2


def test_packed_pieces_and_an_axis_that_runs_twice() -> None:
    names: dict[str, Dim] = {}
    packed, square = read("[(h:4 d:2)|(h d)|e:3] (h h)", names)
    split = Split((names["h"],))
    split.divide((1, 3))
    assert pieces(packed, split, 0) == ((0, 2), (8, 10), (16, 19))
    assert pieces(packed, split, 1) == ((2, 8), (10, 19))
    assert splittable([packed], split) and not splittable([square], split)
    assert not splittable([packed, packed], split)


def test_no_split_dimension_is_the_whole() -> None:
    assert not Shards()
    assert take(torch.arange(4), (), 1).tolist() == [0, 1, 2, 3]
    assert join_shards([torch.arange(4)] * 2, (), (4,)).tolist() == [0, 1, 2, 3]


def test_part_of_one_interval_is_a_view() -> None:
    whole = torch.arange(12).reshape(4, 3)
    shard = take(whole, ((0, (((0, 1),), ((1, 4),))),), 1)
    assert shard.data_ptr() == whole[1:].data_ptr()


def test_symbolic_dimension_is_unfolded() -> None:
    """(s h) with a length s that varies: the heads of every position."""

    heads = Dim(4)
    dim = product([Dim(sympy.Symbol("s", positive=True, integer=True)), heads])
    split = Split((heads,))
    split.divide((1, 3))
    assert splittable([dim], split)
    flat, unfolding = unfold([dim], split)
    shard = take_unfolded(torch.arange(8), concrete(flat, split).dims, 1, unfolding)
    assert shard.tolist() == [1, 2, 3, 5, 6, 7]
