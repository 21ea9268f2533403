"""`check_rule` finds lies: rows that allow a split, or pass on a partial sum, where the op does not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tpfx.ir.axes import Dim, factors, find, product
from tpfx.ir.axes_text import read
from tpfx.ir.op_dims import Bound, Call
from tpfx.lowering.ops import LOWERINGS
from tpfx.rules import indexing, pointwise, reductions, views, whole_dims
from tpfx.rules.rule import Lowering, Rule
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
    """cat that passes on a partial sum of its first operand only."""
    return dataclasses.replace(views.cat(call), linear=((0,),))


def _filled(call: Call) -> Bound:
    return dataclasses.replace(pointwise.masked_fill(call), linear=((0,),))


# What gives a lie away: the values or the shape of a rank's result, the sum of the ranks' results, or that a
# rank raises what PyTorch raises for operands that do not belong together.
VALUES = ".*: rank [01] differs from the op run whole. Tensor-likes are not close"
SHAPE = " differs from the op run whole. The values for attribute 'shape' do not match"
SUM = ".*: the ranks' partial sums differs from the op run whole. Tensor-likes are not close"
RAISED = ".*: rank [01] raised "

LIES: dict[str, tuple[Any, Rule, tuple[Any, ...], str]] = {
    "mm: the operands' inner dimensions differ": (
        aten.mm.default,
        Rule("m k, j n -> m n"),
        (MANY, MANY.T),
        RAISED + "RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    ),
    "mm: partial sums are joined by max": (
        aten.mm.default,
        Rule("m k, k n -> m n", reduce="max"),
        (MANY, MANY.T),
        "split b:6" + SUM,
    ),
    "mm: linear in both at once": (
        aten.mm.default,
        Rule("m k, k n -> m n", linear=((0, 1),)),
        (MANY, MANY.T),
        r"partial sums in operands \[0, 1\]" + SUM,
    ),
    "linear: a bias in every partial sum": (
        aten.linear.default,
        Rule("... k, n k, n -> ... n"),
        (MANY, MANY, ONES[:4]),
        "split b:6" + SUM,
    ),
    "softmax: free": (
        aten._softmax.default,
        Rule("m n -> m n"),
        (MANY, -1, False),
        "split b:6" + VALUES,
    ),
    "softmax: contracted": (
        aten._softmax.default,
        Rule(reductions.reduction),
        (MANY, -1, False),
        "split b:6.*rank 0's partial sum" + SHAPE,
    ),
    "layer_norm: free": (
        aten.native_layer_norm.default,
        Rule("... d, d, d -> ... d, ... 1, ... 1"),
        (MANY, [6], ONES, ONES, 1e-5),
        "split b:6" + RAISED + "RuntimeError: .* same shape as normalized_shape",
    ),
    "attention: head size free": (
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        Rule("b h q! e, b h k! e, b h k! f! -> b h q! f!, b h q!", pad_empty_shards=True),
        QKV,
        RAISED + "RuntimeError: .* same head size",
    ),
    "attention: keys free": (
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        Rule("b h q! e!, b h k e!, b h k f! -> b h q! f!, b h q!", pad_empty_shards=True),
        QKV,
        "split e:3" + SUM,
    ),
    "mean: no lowering": (
        aten.mean.dim,
        Rule(reductions.reduction),
        (MANY, [1]),
        "split b:6" + SUM,
    ),
    "amax: summed": (
        aten.amax.default,
        Rule("m k -> m"),
        (MANY, [1]),
        "split b:6" + SUM,
    ),
    "amax: no lowering": (
        aten.amax.default,
        Rule(reductions.reduction),
        (MANY, [1]),
        "split b:6" + RAISED + r"IndexError: amax\(\): Expected reduction dim 1 to have non-zero size",
    ),
    "var: contracted": (
        aten.var.correction,
        Rule(reductions.reduction),
        (MANY, [1]),
        "split b:6" + SUM,
    ),
    "argmax: free": (
        aten.argmax.default,
        Rule("m k -> m"),
        (MANY, 1),
        "split b:6" + SUM,
    ),
    "add: linear beside a number": (
        aten.add.Tensor,
        Rule(pointwise.pointwise, linear=((0,),)),
        (MANY, 3),
        r"partial sums in operands \[0\]" + SUM,
    ),
    "add: linear in one of two": (
        aten.add.Tensor,
        Rule(pointwise.pointwise, linear=((0,),)),
        (MANY, MANY),
        r"partial sums in operands \[0\]" + SUM,
    ),
    "mul: linear in both at once": (
        aten.mul.Tensor,
        Rule(pointwise.pointwise, linear=((0, 1),)),
        (MANY, MANY),
        r"partial sums in operands \[0, 1\]" + SUM,
    ),
    "div: linear below": (
        aten.div.Tensor,
        Rule(pointwise.pointwise, linear=((1,),)),
        (MANY, MANY),
        r"partial sums in operands \[1\]" + SUM,
    ),
    "gelu: linear": (
        aten.gelu.default,
        Rule(pointwise.pointwise, linear=((0,),)),
        (MANY,),
        r"partial sums in operands \[0\]" + SUM,
    ),
    "where: linear in one branch": (
        aten.where.self,
        Rule(pointwise.pointwise, linear=((1,),)),
        (MANY > 0, MANY, MANY),
        r"partial sums in operands \[1\]" + SUM,
    ),
    "masked_fill: linear": (
        aten.masked_fill.Scalar,
        Rule(_filled),
        (MANY, MANY > 0, 1.0),
        r"partial sums in operands \[0\]" + SUM,
    ),
    "cat: linear in one operand": (
        aten.cat.default,
        Rule(_one_operand),
        ([MANY, MANY],),
        r"partial sums in operands \[0\]" + SUM,
    ),
    "slice: no lowering": (
        aten.slice.Tensor,
        Rule(views.slice_),
        (MANY, 1, 0, 3),
        "split b:3.*rank 0" + SHAPE,
    ),
    "select: no lowering": (
        aten.select.int,
        Rule(views.select),
        (MANY, 1, 2),
        "split b:2" + VALUES,
    ),
    "split: no lowering": (
        aten.split.Tensor,
        Rule(views.split),
        (MANY, 3, 1),
        "split b:3.*rank 0" + SHAPE,
    ),
    "squeeze: no lowering": (
        aten.squeeze.dim,
        Rule(views.squeeze),
        (MANY[:2], 0),
        "split a:2.*rank 0" + SHAPE,
    ),
    "view: no local shape": (
        aten.reshape.default,
        Rule(views.view),
        (MANY, [2, 2, 6]),
        "split a:2" + RAISED + "RuntimeError: shape .* is invalid for input of size 12",
    ),
    "expand: no local shape": (
        aten.expand.default,
        Rule(views.expand),
        (MANY[:1], [4, 6]),
        RAISED + "RuntimeError: .* must match the existing size",
    ),
    "full: no local shape": (
        aten.full.default,
        Rule(pointwise.fresh),
        ([4, 6], 1.0),
        "split a:4.*rank 0" + SHAPE,
    ),
    "transpose: not transposed": (
        aten.t.default,
        Rule("m n -> m n"),
        (SQUARE,),
        "split a:4.*rank 0" + SHAPE,
    ),
    "embedding: no lowering": (
        aten.embedding.default,
        Rule("v d, ... -> ... d"),
        (MANY, IDS),
        "split a:4" + RAISED + "IndexError: index out of range",
    ),
    "cumsum: free": (
        aten.cumsum.default,
        Rule("m n -> m n"),
        (MANY, 1),
        "split b:6" + VALUES,
    ),
    "sort: free": (
        aten.sort.default,
        Rule("m n -> m n, m n"),
        (MANY, 1),
        "split b:6" + VALUES,
    ),
    "flip: free": (
        aten.flip.default,
        Rule("m n -> m n"),
        (MANY, [1]),
        "split b:6" + VALUES,
    ),
    "index_select: free": (
        aten.index_select.default,
        Rule("m n, j! -> m n"),
        (MANY, 0, torch.tensor([3, 2, 1, 0])),
        "split a:4" + RAISED + "IndexError: index out of range",
    ),
    "index_put: values free": (
        aten.index_put.default,
        Rule(_values_free),
        (MANY, [IDS[0]], MANY[:3] + 1),
        RAISED + "RuntimeError: shape mismatch: value tensor",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_lie_is_found(name: str) -> None:
    op, rule, args, because = LIES[name]
    with pytest.raises(UntrueRuleError, match=because):
        check_rule(op, *args, rule=rule)


@pytest.mark.parametrize("name", [name for name in LIES if LIES[name][0] in TABLE])
def test_the_table_does_not_lie_about_the_same_call(name: str) -> None:
    op, _, args, _ = LIES[name]
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
    assert check_rule(aten.slice.Tensor, packed, 0, 0, 16, dims=["(h:3 d:8)"]) > 0
    with pytest.raises(UntrueRuleError, match="split a:3"):
        check_rule(
            aten.slice.Tensor, packed, 0, 0, 12, rule=Rule(careless, lower=Lowering.SLICE), dims=["(h:3 d:8)"]
        )


def test_an_error_of_a_lowering_is_not_taken_for_a_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("a fault in tpfx")

    monkeypatch.setitem(LOWERINGS, Lowering.SLICE, broken)
    with pytest.raises(KeyError, match="a fault in tpfx"):
        check_rule(aten.slice.Tensor, MANY, 1, 0, 3)


def test_a_rule_that_is_passed_is_not_registered() -> None:
    before = dict(TABLE)
    assert check_rule(aten.mm.default, MANY, MANY.T, rule=Rule("m k!, k! n -> m n")) > 0
    assert before == TABLE


def test_a_rule_that_allows_nothing_runs_nothing() -> None:
    assert check_rule(aten.mm.default, MANY, MANY.T, rule=Rule("m! k!, k! n! -> m n")) == 0


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
