"""Weights whose two sides are one dimension to the graph: of a residual, a recurrence, a mixing of tokens."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import tpfx
from tests.support.compare import gradient_error, largest_error

WIDTH, TOKENS = 384, 384


class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.change, self.gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):  # the same layer again
            gate = torch.sigmoid(self.gate(x))
            x = gate * torch.relu(self.change(x)) + (1 - gate) * x
        return x


class Recurrence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0]  # type: ignore[index, no-any-return]


class ResidualConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.squeeze = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.relu(self.wide(x))
        return x * torch.sigmoid(self.squeeze(x.mean((2, 3))))[:, :, None, None]


class TokenMixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(16, 64), nn.Linear(32, 16)
        self.tokens = nn.Linear(TOKENS, TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        kept, gate = self.into(x).chunk(2, -1)
        return x + self.out(kept * self.tokens(gate.transpose(1, 2)).transpose(1, 2))


NETS = {
    Highway: (5, WIDTH),
    Recurrence: (2, 3, WIDTH),
    ResidualConv: (2, WIDTH, 4, 4),
    TokenMixing: (2, TOKENS, 16),
}


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_a_square_weight_is_divided(net: type[nn.Module], devices: int) -> None:
    torch.manual_seed(0)
    plain, x = net(), torch.randn(NETS[net])
    model = tpfx.compile(copy.deepcopy(plain), ["cpu"] * devices)
    with torch.no_grad():
        assert largest_error(plain(x), model(x)) < 1e-5
        assert largest_error(plain(x[:1]), model(x[:1])) < 1e-5  # another graph, whose weights lie already
    for one in (plain, model):
        one(x).square().mean().backward()
    expected = {name: weight.grad for name, weight in plain.named_parameters()}
    got = {name: weight.grad.full() for name, weight in model.named_parameters()}
    assert gradient_error(expected, got) < 1e-4
    report = tpfx.report(model)
    assert max(report.bytes_per_device) <= 1.1 / devices * report.total_bytes


def test_a_weight_that_itself_makes_its_sides_one_stays_whole() -> None:
    class Symmetric(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 64) / 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + x @ (self.weight + self.weight.T)

    torch.manual_seed(0)
    plain, x = Symmetric(), torch.randn(4, 64)
    model = tpfx.compile(copy.deepcopy(plain), ["cpu"] * 2)
    for one in (plain, model):
        one(x).square().mean().backward()
    assert (
        largest_error(plain(x), model(x).full() if isinstance(model(x), tpfx.ShardedTensor) else model(x))
        < 1e-5
    )
    assert gradient_error({"w": plain.weight.grad}, {"w": model.weight.grad.full()}) < 1e-4
