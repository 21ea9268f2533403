"""Custom ops: whole without a rule, split with one, and rules that do not fit are refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tpfx.rules.table import TABLE


@torch.library.custom_op("tpfx_test::swish", mutates_args=())
def swish(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x * scale)


@swish.register_fake
def _(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("tpfx_test::add_one_", mutates_args=("x",))
def add_one_(x: torch.Tensor) -> None:
    x.add_(1)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.scale = nn.Linear(8, 16), nn.Linear(16, 8), nn.Parameter(torch.randn(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(swish(self.up(x), self.scale))


class Writing(Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.up(x)
        add_one_(hidden)
        return self.down(hidden)


@pytest.fixture
def rules() -> Iterator[None]:
    """What a test registers goes with it."""
    before = dict(TABLE)
    yield
    TABLE.clear()
    TABLE.update(before)


def check(model: nn.Module) -> tpfx.Report:
    split = tpfx.compile(copy.deepcopy(model), ["cpu"] * 3)
    x = torch.randn(4, 8)
    with torch.no_grad():
        torch.testing.assert_close(split(x), model(x))
    return tpfx.report(split)


def test_without_a_rule_an_op_runs_whole_and_is_named() -> None:
    report = check(Model().eval())
    assert report.whole_ops == {"tpfx_test.swish.default": 1}
    assert "runs whole: tpfx_test.swish.default" in str(report)


def test_an_op_that_writes_runs_whole_and_is_named() -> None:
    report = check(Writing().eval())
    assert list(report.whole_ops.values()) == [1]


@pytest.mark.parametrize("op", [swish, torch.ops.tpfx_test.swish, torch.ops.tpfx_test.swish.default])
def test_with_a_rule_an_op_is_split(op: Any, rules: None) -> None:
    tpfx.register_rule(op, "... d, d -> ... d")
    assert tpfx.check_rule(op, torch.randn(4, 6), torch.randn(6)) > 4
    report = check(Model().eval())
    assert not report.whole_ops
    assert [one.kind for one in report.collectives] == ["all_reduce"]


def test_a_rule_that_lies_is_found_out(rules: None) -> None:
    tpfx.register_rule(swish, "... d, d -> ... d", linear=((0,),))
    with pytest.raises(tpfx.UntrueRuleError, match=r"tpfx_test.swish.default .* partial sums"):
        tpfx.check_rule(swish, torch.randn(4, 6), torch.randn(6))


@pytest.mark.parametrize(
    ("op", "pattern", "options", "message"),
    [
        (swish, "a b, b", {}, "cannot be read: a rule needs '->'"),
        (swish, "a b -> a b", {}, "has 2 tensor arguments, but 'a b -> a b' has 1 groups"),
        (swish, "... d, d -> ... d, d", {}, "has 1 tensor results, but .* has 2 groups"),
        (swish, "... d, d -> ... d", {"linear": ((2,),)}, "names argument 2; .* has 2 tensor arguments"),
        (swish, "... d, d -> ... d", {"reduce": "mean"}, "reduce='mean'; it is 'sum', 'max' or 'min'"),
        (add_one_, "d -> d", {}, "writes into its arguments"),
        (torch.relu, "d -> d", {}, "needs one overload of an op of torch.library"),
        (torch.ops.aten.add, "d, d -> d", {}, "needs one overload"),
        (torch.ops.aten.mm.default, "m k, k n -> m n", {}, "has a rule already"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(op: Any, pattern: str, options: Any, message: str) -> None:
    before = dict(TABLE)
    with pytest.raises(tpfx.RuleError, match=message):
        tpfx.register_rule(op, pattern, **options)
    assert before == TABLE
