"""The rule of an eager op, bound to the tensors at hand: what may stay split, and how results lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import tpfx
from tests.support.sharded import PLACEMENTS, SHAPE, agree, sharded
from tpfx.ir.shards import Shards
from tpfx.rules.table import TABLE
from tpfx.sharded_tensor import bound_ops
from tpfx.sharded_tensor.bound_ops import BoundOp, bound_op, written
from tpfx.sharded_tensor.tensor import ShardedTensor

aten = torch.ops.aten
ROWS, PACKED = PLACEMENTS["rows"], PLACEMENTS["packed"]


def bound(func: Any, *args: Any, owner: ShardedTensor | None = None) -> BoundOp | None:
    owner = owner or next(arg for arg in args if isinstance(arg, ShardedTensor))
    return bound_op(func, args, {}, owner)


def test_a_split_dimension_goes_where_the_rule_says() -> None:
    x = sharded(torch.randn(SHAPE), PACKED)
    found = bound(aten.transpose.int, x, 0, 1)
    assert found is not None and PACKED is not None
    ((dim, owned),) = PACKED.dims
    assert dim == 1
    (result,) = found.results
    assert (result.placement, result.shape, result.stride) == (Shards(((0, owned),)), (6, 4, 3), (3, 18, 1))


def test_other_operands_lie_as_the_rule_needs_them() -> None:
    x = sharded(torch.randn(SHAPE), ROWS)
    assert ROWS is not None
    found = bound(aten.add.Tensor, torch.ones(2, 4, 6, 1), x)
    assert found is not None
    assert found.operands == (((1, ROWS.dims[0][1]),), ROWS.dims)
    found = bound(aten.index_copy_.default, x, 1, torch.tensor([0]), torch.zeros(4, 1, 3))
    assert found is not None and found.operands == (ROWS.dims, (), ROWS.dims)
    assert found.results[0].placement is None  # as the owner's


REFUSED: dict[str, tuple[Any, ...]] = {
    "whole along it": (aten._softmax.default, 0, False),
    "summed over": (aten.sum.dim_IntList, [0]),
    "selected from": (aten.select.int, 0, 2),
    "cut with steps": (aten.slice.Tensor, 0, 0, 4, 2),
    "no rule": (aten.flatten_dense_tensors.default,),
    "another kernel on a rank": (aten.scatter.value, 1, torch.zeros(4, 1, 3, dtype=torch.int64), 2.0),
    "another size on each rank": (aten.nonzero.default,),
    "random": (aten.bernoulli.default,),
    "not a tensor": (aten.equal.default, torch.zeros(SHAPE)),
    "refused by the op itself": (aten.view.default, [5]),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_needs_the_whole_is_not_bound(why: str) -> None:
    func, *args = REFUSED[why]
    assert bound(func, sharded(torch.randn(SHAPE), ROWS), *args) is None


def test_without_elements_an_op_that_needs_some_is_not_bound() -> None:
    """A rank of a graph calls it on zeros instead, which an eager op does not."""
    x = sharded(torch.randn(1, 4, 6, 3), Shards(((1, (((0, 4),), ())),)))
    assert bound(aten.avg_pool2d.default, x, [2, 2]) is None
    assert torch.nn.functional.avg_pool2d(x, 2).shape == (1, 4, 3, 1)


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Which ops have been bound anew, with nothing remembered at first."""
    seen: list[Any] = []
    bind = bound_ops._bind

    def count(twin: Any, *args: Any) -> Any:
        seen.append(twin)
        return bind(twin, *args)

    monkeypatch.setattr(bound_ops, "_bound", {})
    monkeypatch.setattr(bound_ops, "_bind", count)
    return seen


def test_a_call_is_bound_once_whatever_its_numbers_are(bindings: list[Any]) -> None:
    x = sharded(torch.ones(SHAPE), ROWS)
    for step in range(3):
        x.mul_(1.0 + step)
        x.index_select(1, torch.tensor([step]))
    assert bindings == [aten.mul.Tensor, aten.index_select.default]
    x.index_select(2, torch.tensor([0]))
    x[:, :2].mul_(2.0)
    assert bindings[2:] == [aten.index_select.default, aten.slice.Tensor, aten.mul.Tensor]


def test_only_so_many_calls_are_remembered(bindings: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound_ops, "_MOST", 2)
    x = sharded(torch.ones(SHAPE), ROWS)
    for at in range(5):
        x[:, at:]
        assert len(bound_ops._bound) <= 2


def test_what_an_op_writes_into() -> None:
    assert written(aten.add_.Tensor) == (0,) and written(aten.add.Tensor) == ()
    assert written(aten.add.out) == (3,)


@pytest.fixture
def doubled() -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """A custom op of a user."""
    with torch.library._scoped_library("tpfx_test_eager", "FRAGMENT") as library:
        library.define("doubled(Tensor x) -> Tensor")
        library.impl("doubled", lambda x: x * 2, "CompositeExplicitAutograd")
        op = torch.ops.tpfx_test_eager.doubled
        yield op
        TABLE.pop(op.default, None)


def test_a_rule_that_is_registered_later_counts(doubled: Any) -> None:
    x = sharded(torch.randn(SHAPE), ROWS)
    assert not isinstance(doubled(x), ShardedTensor)
    tpfx.register_rule(doubled, "... -> ...")
    result = doubled(x)
    assert isinstance(result, ShardedTensor) and result.placement == ROWS
    agree(result)
    assert torch.equal(result.full(), x.full() * 2)
