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


class Crossing(nn.Module):
    """Attention to another input, whose batch is viewed as that of the first, together with heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.out = nn.MultiheadAttention(32, 4, batch_first=True), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """`[batch, length, 32]` to the same."""
        mixed: torch.Tensor = self.attention(x, memory, memory, need_weights=False)[0]
        out: torch.Tensor = self.out(mixed)
        return out


@pytest.mark.parametrize("count", [2, 4])
def test_attention_to_another_input_is_divided_by_heads(count: int) -> None:
    plain, split = Crossing(), tpfx.compile(Crossing(), ["cpu"] * count)
    for batch, lengths in ((2, (5, 7)), (3, (4, 4)), (2, (6, 1)), (1, (5, 7))):
        given = [torch.randn(batch, length, 32) for length in lengths]
        found, expected = split(*given), plain(*given)
        torch.testing.assert_close(found, expected)
        for loss in (found.square().sum(), expected.square().sum()):
            loss.backward()
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(split.get_parameter(name).grad.full(), weight.grad, atol=1e-4, rtol=1e-4)
    assert split.attention.in_proj_weight.shards[0].shape[0] == 96 // count
    assert split.attention.out_proj.weight.shards[0].shape[1] == 32 // count
    with pytest.raises(RuntimeError):
        plain(torch.randn(2, 5, 32), torch.randn(4, 7, 32))
    with pytest.raises((RuntimeError, tpfx.TpfxError)):
        split(torch.randn(2, 5, 32), torch.randn(4, 7, 32))
