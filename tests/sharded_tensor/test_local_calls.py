"""What a rank calls on its shard, where the numbers of the call are others there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.sharded import PLACEMENTS, SHAPE, sharded
from tpfx.ir.shards import Shards
from tpfx.sharded_tensor.bound_ops import bound_op
from tpfx.sharded_tensor.local_calls import Local

aten = torch.ops.aten


def local(func: Any, how: str, *args: Any) -> Local:
    x = sharded(torch.randn(SHAPE), PLACEMENTS[how])
    found = bound_op(func, (x, *args), {}, x)
    assert found is not None
    return found.local


def test_a_slice_of_a_split_dimension_has_the_limits_in_each_shard() -> None:
    assert local(aten.slice.Tensor, "packed", 1, 1, 5) == Local(aten.slice.Tensor, ((1, 1, 2), (1, 0, 3)))
    assert local(aten.slice.Tensor, "packed", 0, 1, 3) == Local()


def test_pieces_of_a_split_dimension_have_the_sizes_in_each_shard() -> None:
    expected = Local(aten.split_with_sizes.default, (([1, 0, 1, 0], 1), ([1, 1, 0, 2], 1)))
    assert local(aten.split_with_sizes.default, "packed", [2, 1, 1, 2], 1) == expected
    assert local(aten.split.Tensor, "packed", 2, 2) == Local()


def test_a_shape_is_that_of_the_shard() -> None:
    assert local(aten.view.default, "rows", [24, 3]) == Local(torch.reshape, (([18, 3],), ([6, 3],)))
    shapes = (([5, 3, 6, 3],), ([5, 1, 6, 3],))
    assert local(aten.expand.default, "rows", [5, -1, 6, 3]) == Local(aten.expand.default, shapes)


def test_what_is_of_size_one_on_a_rank_only_is_not_squeezed(
    never_gathered: Callable[[], None],
) -> None:
    x = sharded(torch.randn(SHAPE), PLACEMENTS["rows"])  # rank 1 has one row
    assert local(aten.squeeze.dim, "rows", 0) == Local(aten.squeeze.dims, (([],), ([],)))
    result = x.squeeze(0)
    never_gathered()
    assert result.shape == SHAPE and torch.equal(result.full(), x.full())


@pytest.fixture
def never_gathered(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    gathered = type(sharded(torch.zeros(1), None)).gathered
    kind = type(sharded(torch.zeros(1), Shards()))

    def refuse(self: torch.Tensor, device: object = None) -> torch.Tensor:
        raise AssertionError(f"{self!r} is gathered")

    monkeypatch.setattr(kind, "gathered", refuse)
    return lambda: monkeypatch.setattr(kind, "gathered", gathered)
