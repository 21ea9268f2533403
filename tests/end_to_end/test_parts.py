"""Two parts of one model, each compiled by itself, on as many devices or on others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tpfx
from tests.support.nets import Net
from tests.support.sharded import whole


class Chain(nn.Module):
    """A part's result goes through a parameter that is not split into the next part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Net(), Net(1)
        self.scale = nn.Parameter(torch.full((8,), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.scale)


class Towers(nn.Module):
    """The parts' results meet outside of both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Net(), Net(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) @ self.second(x).t()


def _trained(model: nn.Module, call: Any) -> list[Tensor]:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    found = []
    for _ in range(2):
        result = call(x)
        result.square().mean().backward()
        found += [result, nn.utils.clip_grad_norm_(model.parameters(), 0.5)]
        optimizer.step()
        optimizer.zero_grad()
    return [whole(one.detach()) for one in (*found, *model.parameters())]


@pytest.mark.parametrize(
    ("kind", "first", "second", "inside"),
    [
        (Chain, 2, 3, False),
        (Chain, 3, 2, True),
        (Towers, 2, 3, False),
        pytest.param(Towers, 2, 2, False, marks=pytest.mark.slow),
        pytest.param(Chain, 2, None, True, marks=pytest.mark.slow),
    ],
)
def test_parts_train_as_the_whole(
    kind: type[nn.Module], first: int, second: int | None, inside: bool
) -> None:
    """`inside`: of a model that torch.compile compiles."""
    model: Any = kind()
    reference = copy.deepcopy(model)
    tpfx.compile(model.first, ["cpu"] * first)
    if second:
        tpfx.compile(model.second, ["cpu"] * second)
    call = torch.compile(model, backend="aot_eager") if inside else model
    got, want = _trained(model, call), _trained(reference, reference)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert model.first.up.weight.placement


def test_a_layer_of_one_part_may_become_one_of_the_other() -> None:
    model, x = Chain(), torch.ones(2, 8)
    reference = copy.deepcopy(model)
    tpfx.compile(model.first, ["cpu"] * 2)
    tpfx.compile(model.second, ["cpu"] * 3)
    with torch.no_grad():
        model(x)
        for each in (model, reference):
            each.first.up = each.second.up
        torch.testing.assert_close(model(x), reference(x))
