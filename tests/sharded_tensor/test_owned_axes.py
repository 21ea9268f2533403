"""What ranks own of a dimension, followed through products and concatenations."""

from __future__ import annotations

import pytest

from tpfx.ir.axes import Dim, concat, cut, product
from tpfx.sharded_tensor.owned_axes import Owned, OwnedAxes, clipped

HALVES: Owned = (((0, 2),), ((2, 4),))
PACKED: Owned = (((0, 1), (3, 4)), ((1, 3), (4, 6)))


def test_a_product_is_owned_by_its_factors_major_first() -> None:
    heads, owned = Dim(4), OwnedAxes()
    assert owned.split(heads, HALVES)
    assert owned.of(product([heads, Dim(3)])) == (((0, 6),), ((6, 12),))
    assert owned.of(product([Dim(2), heads])) == (((0, 2), (4, 6)), ((2, 4), (6, 8)))


def test_a_concatenation_is_owned_piece_by_piece() -> None:
    heads, owned = Dim(4), OwnedAxes()
    assert owned.split(heads, HALVES)
    assert owned.of(concat([heads, heads])) == (((0, 2), (4, 6)), ((2, 4), (6, 8)))
    assert owned.of(concat([heads, Dim(3)])) is None  # every rank has all of the rest
    assert owned.placement([Dim(5), heads]) == ((1, HALVES),)
    assert owned.placement([concat([heads, Dim(3)])]) is None


def test_a_dimension_that_was_cut_gives_each_piece_its_part() -> None:
    packed, owned = Dim(6), OwnedAxes()
    halves = cut(packed, 3)
    assert halves is not None and owned.split(packed, PACKED)
    assert [owned.of(half) for half in halves] == [clipped(PACKED, 0, 3), clipped(PACKED, 3, 6)]
    assert owned.of(packed) == PACKED
    assert clipped(PACKED, 2, 5) == (((1, 2),), ((0, 1), (2, 3)))


@pytest.mark.parametrize(("inner", "taken"), [(2, True), (4, False)])
def test_of_a_product_only_whole_indices_of_the_major_factor_are_owned(inner: int, taken: bool) -> None:
    major, owned = Dim(8 // inner), OwnedAxes()
    thirds: Owned = (((0, 2),), ((2, 8),))
    assert owned.split(product([major, Dim(inner)]), thirds) is taken
    assert not taken or owned.of(major) == (((0, 1),), ((1, 4),))


def test_an_axis_has_one_owner_and_occurs_once_in_a_tensor() -> None:
    axis, owned = Dim(4), OwnedAxes()
    assert owned.split(axis, HALVES) and owned.split(axis, HALVES)
    assert not owned.split(axis, (((0, 1),), ((1, 4),)))
    assert owned.once([axis, Dim(4)]) and not owned.once([axis, axis])
    assert owned.once([concat([axis, axis])])


def test_an_axis_of_one_index_is_followed_too() -> None:
    """As one head of several, of which only one rank has something."""
    one, owned = Dim(1), OwnedAxes()
    assert owned.split(one, (((0, 1),), ()))
    assert owned.touches([one]) and not owned.touches([Dim(1)])
    assert owned.placement([Dim(1), one]) == ((1, (((0, 1),), ())),)
