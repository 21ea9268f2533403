"""Activations that are flattened: a dimension of a varying size is divided, and has no fixed intervals."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tpfx
from tests.support.sharded import whole

OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda h, at: h.flatten(1).mean(-1),
    "gather": lambda h, at: h.flatten(1).gather(1, at),
    "gather of all": lambda h, at: h.flatten().gather(0, at[0]),
    "scatter": lambda h, at: h.flatten(1).scatter(1, at, 0.0),
    "scatter_add": lambda h, at: h.flatten(1).scatter_add(1, at, h[:, 0, :4]),
    "index": lambda h, at: h.flatten(1)[:, at[0]],
    "amax": lambda h, at: h.flatten(1).amax(-1),
    "topk": lambda h, at: h.flatten(1).topk(5)[0],
    "cat": lambda h, at: torch.cat([h.flatten(1), h.flatten(1) * 2], 1),
    "split": lambda h, at: h.flatten(1).split(h.shape[1] * h.shape[2], 1)[0] * 2,
    "slice": lambda h, at: h.flatten(1)[:, : h.shape[1] * h.shape[2]] * 2,
    "half": lambda h, at: h.flatten(1).chunk(2, 1)[1] * 2,
}


class Flattened(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.op = nn.Linear(8, 64), OPS[name]

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        return self.op(torch.tanh(self.into(x)), at)


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        pytest.param(
            name, devices, marks=[] if devices == 2 and name in ("mean", "gather") else pytest.mark.slow
        )
        for name in OPS
        for devices in (2, 3)
    ],
)
def test_flattened_activations(name: str, devices: int) -> None:
    plain = Flattened(name)
    model = tpfx.compile(copy.deepcopy(plain), ["cpu"] * devices)
    for length in (5, 6):
        x, at = torch.randn(2, length, 8), torch.randint(0, 320, (2, 4)).sort(1)[0]
        results = [each(x, at) for each in (plain, model)]
        torch.testing.assert_close(results[1], results[0])
        for each, result in zip((plain, model), results, strict=True):
            each.zero_grad()
            result.square().sum().backward()
        torch.testing.assert_close(
            whole(model.into.weight.grad), plain.into.weight.grad, atol=1e-4, rtol=1e-4
        )
    assert tpfx.report(model).graphs == 1
