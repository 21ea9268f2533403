"""`check_rule` finds lies: rows that allow a split, or pass on a pending sum, where the op does not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tpfx.ir.axes import Dim, factors, find, product
from tpfx.ir.axes_text import read
from tpfx.ir.op_dims import Bound, Call
from tpfx.rules import indexing, pointwise, reductions, views, whole_dims
from tpfx.rules.rule import Rule
from tpfx.rules.table import TABLE
from tpfx.verify.rule_check import UntrueRuleError, check_rule

aten = torch.ops.aten
MANY = torch.arange(24, dtype=torch.float64).reshape(4, 6) % 7 - 2.5
SQUARE = MANY[:, :4]
HEADS = torch.randn(2, 4, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
QKV = (HEADS, HEADS.flip(0), HEADS.flip(1))
ONES = torch.ones(6, dtype=torch.float64)
IDS = torch.tensor([[0, 3, 3], [1, 2, 0]])


def _values_free(call: Call) -> Bound:
    """index_put that does not say that the values' dimensions are the target's."""
    bound = indexing.index_put(call)
    bound.operands[-1] = [Dim(find(dim).size) for dim in bound.operands[-1]]
    return bound


def _one_operand(call: Call) -> Bound:
    """cat that passes on a sum that is pending in its first operand only."""
    return dataclasses.replace(views.cat(call), linear=((0,),))


def _filled(call: Call) -> Bound:
    return dataclasses.replace(pointwise.masked_fill(call), linear=((0,),))


LIES: dict[str, tuple[Any, Rule, tuple[Any, ...]]] = {
    "mm: the operands' inner dimensions differ": (aten.mm.default, Rule("m k, j n -> m n"), (MANY, MANY.T)),
    "mm: addends are joined by max": (aten.mm.default, Rule("m k, k n -> m n", reduce="max"), (MANY, MANY.T)),
    "mm: linear in both at once": (
        aten.mm.default,
        Rule("m k, k n -> m n", linear=((0, 1),)),
        (MANY, MANY.T),
    ),
    "linear: a bias in every addend": (
        aten.linear.default,
        Rule("... k, n k, n -> ... n"),
        (MANY, MANY, ONES[:4]),
    ),
    "softmax: free": (aten._softmax.default, Rule("m n -> m n"), (MANY, -1, False)),
    "softmax: contracted": (aten._softmax.default, Rule(reductions.reduction), (MANY, -1, False)),
    "layer_norm: free": (
        aten.native_layer_norm.default,
        Rule("... d, d, d -> ... d, ... 1, ... 1"),
        (MANY, [6], ONES, ONES, 1e-5),
    ),
    "attention: head size free": (
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        Rule("b h q! e, b h k! e, b h k! f! -> b h q! f!, b h q!", lower="attention"),
        QKV,
    ),
    "attention: keys free": (
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        Rule("b h q! e!, b h k e!, b h k f! -> b h q! f!, b h q!", lower="attention"),
        QKV,
    ),
    "mean: no lowering": (aten.mean.dim, Rule(reductions.reduction), (MANY, [1])),
    "amax: summed": (aten.amax.default, Rule("m k -> m"), (MANY, [1])),
    "amax: no lowering": (aten.amax.default, Rule(reductions.reduction), (MANY, [1])),
    "var: contracted": (aten.var.correction, Rule(reductions.reduction), (MANY, [1])),
    "argmax: free": (aten.argmax.default, Rule("m k -> m"), (MANY, 1)),
    "add: linear beside a number": (aten.add.Tensor, Rule(pointwise.pointwise, linear=((0,),)), (MANY, 3)),
    "add: linear in one of two": (aten.add.Tensor, Rule(pointwise.pointwise, linear=((0,),)), (MANY, MANY)),
    "mul: linear in both at once": (
        aten.mul.Tensor,
        Rule(pointwise.pointwise, linear=((0, 1),)),
        (MANY, MANY),
    ),
    "div: linear below": (aten.div.Tensor, Rule(pointwise.pointwise, linear=((1,),)), (MANY, MANY)),
    "gelu: linear": (aten.gelu.default, Rule(pointwise.pointwise, linear=((0,),)), (MANY,)),
    "where: linear in one branch": (
        aten.where.self,
        Rule(pointwise.pointwise, linear=((1,),)),
        (MANY > 0, MANY, MANY),
    ),
    "masked_fill: linear": (aten.masked_fill.Scalar, Rule(_filled), (MANY, MANY > 0, 1.0)),
    "cat: linear in one operand": (aten.cat.default, Rule(_one_operand), ([MANY, MANY],)),
    "slice: no lowering": (aten.slice.Tensor, Rule(views.slice_), (MANY, 1, 0, 3)),
    "select: no lowering": (aten.select.int, Rule(views.select), (MANY, 1, 2)),
    "split: no lowering": (aten.split.Tensor, Rule(views.split), (MANY, 3, 1)),
    "squeeze: no lowering": (aten.squeeze.dim, Rule(views.squeeze), (MANY[:2], 0)),
    "view: no local shape": (aten.reshape.default, Rule(views.view), (MANY, [2, 2, 6])),
    "expand: no local shape": (aten.expand.default, Rule(views.expand), (MANY[:1], [4, 6])),
    "full: no local shape": (aten.full.default, Rule(pointwise.fresh), ([4, 6], 1.0)),
    "transpose: not transposed": (aten.t.default, Rule("m n -> m n"), (SQUARE,)),
    "embedding: no lowering": (aten.embedding.default, Rule("v d, ... -> ... d"), (MANY, IDS)),
    "cumsum: free": (aten.cumsum.default, Rule("m n -> m n"), (MANY, 1)),
    "sort: free": (aten.sort.default, Rule("m n -> m n, m n"), (MANY, 1)),
    "flip: free": (aten.flip.default, Rule("m n -> m n"), (MANY, [1])),
    "index_select: free": (
        aten.index_select.default,
        Rule("m n, j! -> m n"),
        (MANY, 0, torch.tensor([3, 2, 1, 0])),
    ),
    "index_put: values free": (aten.index_put.default, Rule(_values_free), (MANY, [IDS[0]], MANY[:3] + 1)),
}


@pytest.mark.parametrize("name", LIES)
def test_lie_is_found(name: str) -> None:
    op, rule, args = LIES[name]
    before = dict(TABLE)
    with pytest.raises(UntrueRuleError):
        check_rule(op, *args, rule=rule)
    assert before == TABLE


@pytest.mark.parametrize("name", [name for name in LIES if LIES[name][0] in TABLE])
def test_the_table_does_not_lie_about_the_same_call(name: str) -> None:
    op, _, args = LIES[name]
    assert check_rule(op, *args) > 0


def test_lie_about_a_packed_dimension_is_found() -> None:
    """A cut through the middle of heads: only whole heads may be split."""

    def careless(call: Call) -> Bound:
        bound = whole_dims.unsplit(call)
        bound.whole.clear()
        half = product([factors(call.dims[0][0])[0], Dim(4)])
        bound.results[0] = [half]
        return bound

    packed = torch.arange(24.0)
    check_rule(aten.slice.Tensor, packed, 0, 0, 16, dims=["(h:3 d:8)"])
    with pytest.raises(UntrueRuleError, match="split a:3"):
        check_rule(
            aten.slice.Tensor, packed, 0, 0, 12, rule=Rule(careless, lower="slice"), dims=["(h:3 d:8)"]
        )


def test_message_says_what_and_where() -> None:
    with pytest.raises(UntrueRuleError) as caught:
        check_rule(aten.cumsum.default, torch.ones(4, 6), 1, rule=Rule("m k -> m k"), ranks=(2,))
    message = str(caught.value)
    assert message.startswith("aten.cumsum.default (operand0, 1) : a:4 b:6 -> a:4 b:6, split b:6 as [")
    assert "2 ranks: rank 1 differs from the op run whole." in message


def test_op_without_rule_is_refused() -> None:
    with pytest.raises(
        UntrueRuleError, match=r"aten.linalg_cross.default has no rule: register one, or pass it as rule="
    ):
        check_rule(aten.linalg_cross.default, torch.ones(2, 3), torch.ones(2, 3))


def test_structure_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="a dimension of 6 cannot be"):
        check_rule(aten.mm.default, MANY, MANY.T, dims=["m:4 (h:2 d:4)"])
    with pytest.raises(ValueError, match=r"unmatched '\)'"):
        read("a:2)")
