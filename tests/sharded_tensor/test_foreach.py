"""Ops over lists of tensors, and reductions to a number: shard by shard, what ranks share counted once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.sharded import PLACEMENTS, SHAPE, agree, sharded
from tpfx.sharded_tensor import foreach
from tpfx.sharded_tensor.tensor import ShardedTensor

PAIRS = [("rows", "packed", "overlapping", "undivided"), ("replicated", "one rank has it all", "two dims")]


@pytest.fixture(params=PAIRS, ids="-".join)
def lists(request: pytest.FixtureRequest) -> tuple[list[torch.Tensor], list[ShardedTensor]]:
    """Plain tensors, and the same ones held in several ways."""
    plain = [torch.randn(SHAPE) for _ in request.param]
    return plain, [sharded(one, PLACEMENTS[how]) for one, how in zip(plain, request.param, strict=True)]


LIST_OPS: dict[str, Callable[[Any, Any], Any]] = {
    "mul by a number": lambda x, y: torch._foreach_mul_(x, 0.5),
    "mul by a tensor": lambda x, y: torch._foreach_mul_(x, torch.tensor(0.5)),
    "mul by numbers": lambda x, y: torch._foreach_mul_(x, [float(at) for at in range(len(x))]),
    "addcmul": lambda x, y: torch._foreach_addcmul_(x, y, y, 0.3),
    "lerp": lambda x, y: torch._foreach_lerp_(x, y, 0.3),
    "a new list": lambda x, y: torch._foreach_add(x, y, alpha=2.0),
    "roots": lambda x, y: torch._foreach_sqrt(torch._foreach_abs(x)),
    "norms": lambda x, y: torch._foreach_norm(x, 2),
    "greatest": lambda x, y: torch._foreach_norm(x, float("inf")),
    "copy": lambda x, y: torch._foreach_copy_(x, y),
    "zero": lambda x, y: torch._foreach_zero_(x),
}


@pytest.mark.parametrize("op", LIST_OPS)
def test_ops_over_lists_are_those_of_the_wholes(
    lists: tuple[list[torch.Tensor], list[ShardedTensor]], op: str
) -> None:
    plain, held = lists
    other = [torch.randn(SHAPE) for _ in plain]
    expected, result = LIST_OPS[op](plain, other), LIST_OPS[op](held, other)
    pairs = [(plain, held)] if expected is None else [(plain, held), (expected, result)]
    for left, right in pairs:
        for one, two in zip(left, right, strict=True):
            whole = two.full() if isinstance(two, ShardedTensor) else two
            torch.testing.assert_close(whole, one)
    for one in held:
        agree(one)


REDUCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "norm": torch.linalg.vector_norm,
    "norm of order 1": lambda x: torch.linalg.vector_norm(x, 1),
    "norm of order inf": lambda x: torch.linalg.vector_norm(x, float("inf")),
    "norm of order 0": lambda x: torch.linalg.vector_norm(x, 0),
    "norm along a dimension": lambda x: torch.linalg.vector_norm(x, 2, dim=1),
    "sum": torch.sum,
    "max": torch.max,
    "min": torch.min,
    "all": lambda x: torch.isfinite(x).all(),
    "any": lambda x: torch.isnan(x).any(),
}


@pytest.mark.parametrize("how", PLACEMENTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_count_every_element_once(how: str, reduction: str) -> None:
    whole = torch.randn(SHAPE)
    torch.testing.assert_close(
        REDUCTIONS[reduction](sharded(whole, PLACEMENTS[how])), REDUCTIONS[reduction](whole)
    )


@pytest.mark.parametrize("how", ["rows", "packed", "overlapping", "replicated", "one rank has it all"])
def test_clipping_gathers_nothing(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(sharded(torch.randn(SHAPE), PLACEMENTS[how]))
    weight.grad = sharded(torch.randn(SHAPE), PLACEMENTS[how])
    expected = weight.grad.full().norm()
    monkeypatch.setattr(
        ShardedTensor, "gathered", lambda self, device=None: pytest.fail(f"{self!r} gathered")
    )
    torch.testing.assert_close(torch.nn.utils.clip_grad_norm_([weight], 0.1), expected)
    torch.testing.assert_close(torch.nn.utils.clip_grad_norm_([weight], 0.1), torch.tensor(0.1))


def test_which_ops_go_item_by_item() -> None:
    known = torch.ops.aten
    assert foreach.over_lists(known._foreach_mul_.Scalar) and foreach.over_lists(known._fused_adamw_.default)
    assert not foreach.over_lists(known._foreach_norm.Scalar) and not foreach.over_lists(known.mul.Tensor)
