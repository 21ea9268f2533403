"""Weights that an op is given which calls graphs itself: rows of a scan, what a loop carries."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_over
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

import tpfx
from tests.support.compare import gradient_error, largest_error

WIDTH = 64


class Stack(nn.Module):
    """Layers in one weight, and one of their own."""

    def __init__(self, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.layers = nn.Parameter(torch.randn(3, WIDTH, WIDTH) / 8)
        self.single = nn.Parameter(torch.randn(WIDTH, WIDTH) / 8)
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


def _layers(model: Any, x: Tensor) -> Any:
    def step(carried: Tensor, layer: Tensor) -> tuple[Tensor, Tensor]:
        made = torch.tanh(carried @ layer)
        return made, made.sum(-1)

    return scan(step, x @ model.single, model.layers)


def _carried(model: Any, x: Tensor) -> Any:
    def step(weight: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(weight + row), weight @ row

    return scan(step, model.single, x)


def _map(model: Any, x: Tensor) -> Any:
    return map_over(lambda layer, x: torch.tanh(x @ layer), model.layers, x)


def _loop(model: Any, x: Tensor) -> Any:
    def step(count: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return count + 1, torch.tanh(x @ weight), weight.clone()

    return while_loop(lambda count, x, weight: count < 3, step, (torch.tensor(0), x, model.single))[1:]


def _branch(model: Any, x: Tensor) -> Any:
    return torch.cond(x.sum() > 0, torch.matmul, lambda x, w: x @ w.t(), (x, model.single))


CALLS = [_layers, _carried, _map, _loop, _branch]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__.strip("_"))
def test_weights_that_graphs_are_called_with(call: Callable[[Any, Tensor], Any]) -> None:
    torch.manual_seed(0)
    plain, x = Stack(call), torch.randn(8, WIDTH)
    model = tpfx.compile(copy.deepcopy(plain), ["cpu"] * 2)
    with torch.no_grad():
        assert largest_error(plain(x), model(x)) < 1e-5
    if call is _loop:  # AOTAutograd has no derivative of it
        return
    for one in (plain, model):
        made = one(x)
        sum(one.square().mean() for one in (made if isinstance(made, tuple) else (made,))).backward()
    expected = {name: weight.grad for name, weight in plain.named_parameters() if weight.grad is not None}
    got = {name: weight.grad.full() for name, weight in model.named_parameters() if name in expected}
    assert expected and gradient_error(expected, got) < 1e-4
