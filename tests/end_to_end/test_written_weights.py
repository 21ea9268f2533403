"""Weights that writes into an empty tensor unpack, their scales in a dict of the layer, as HQQ has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tpfx
from tests.support.models import inputs, tiny

GROUP = 64


class Written(nn.Module):
    """A linear layer of 4 bits; a byte has a number of each half of the groups, or of two neighbours."""

    def __init__(self, inside: int, outside: int, in_turns: bool) -> None:
        super().__init__()
        groups = torch.randn(inside * outside // GROUP, GROUP) / inside**0.5
        low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
        scale = (high - low) / 15
        numbers = ((groups - low) / scale).round().to(torch.uint8)
        self.of_high, self.of_low = self.parts(len(numbers), in_turns)
        packed = numbers[self.of_high] << 4 | numbers[self.of_low]
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.meta = {"scale": scale, "zero": -low / scale, "shape": (outside, inside)}

    @staticmethod
    def parts(count: int, in_turns: bool) -> tuple[slice, slice]:
        if in_turns:
            return slice(None, None, 2), slice(1, None, 2)
        return slice(None, count // 2), slice(count // 2, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        numbers = torch.empty(2 * len(self.packed), GROUP, dtype=x.dtype)
        numbers[self.of_high] = (self.packed & 0b11110000) >> 4
        numbers[self.of_low] = self.packed & 0b00001111
        meta: Any = self.meta
        return F.linear(x, ((numbers - meta["zero"]) * meta["scale"]).reshape(meta["shape"]))


class Net(nn.Module):
    """A layer before which, and one after which, ranks have to talk."""

    def __init__(self, in_turns: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = Written(256, 768, in_turns), Written(768, 256, in_turns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu())


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("in_turns", [False, True])
def test_weights_and_their_scales_are_divided(in_turns: bool, devices: int) -> None:
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    model = tpfx.compile(Net(in_turns), ["cpu"] * devices)
    with torch.no_grad():
        torch.testing.assert_close(model(x), Net(in_turns)(x), rtol=1e-4, atol=1e-5)
    report = tpfx.report(model)
    assert max(report.bytes_per_device) <= 1.1 * report.total_bytes / devices
    assert [one.kind for one in report.collectives] == ["all_reduce"] and not report.whole_ops
    assert all(layer.meta["scale"].placement for layer in (model.up, model.down))


def of_hqq(bits: int) -> Any:
    """A tiny language model whose linear layers are HQQ's."""
    hqq = pytest.importorskip("hqq.core.quantize", reason="hqq is not installed")
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8, "vocab_size": 768}
    model = tiny("llama", **sizes, num_key_value_heads=4)
    for path, layer in list(model.named_modules()):
        if path != "lm_head" and isinstance(layer, nn.Linear):
            config = hqq.BaseQuantizeConfig(nbits=bits, group_size=GROUP, axis=1)
            made = hqq.HQQLinear(layer, config, compute_dtype=torch.float32, device="cpu")
            model.set_submodule(path, made)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_hqq(bits: int, devices: int) -> None:
    model = of_hqq(bits)
    given, options = inputs(model), {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(**given, **options)
    model = tpfx.compile(model, devices)
    assert torch.equal(model.generate(**given, **options), expected)
    report = tpfx.report(model)
    # Of keys and values, a quarter of the rows is one head: at 2 bits, columns are divided, with a sum each.
    sums = sum(one.kind == "all_reduce" for one in report.collectives)
    assert sums == (5 if bits > 2 else 9) and not report.whole_ops
    assert max(report.bytes_per_device) <= 1.1 * report.total_bytes / devices
