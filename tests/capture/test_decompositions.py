"""torch's encoder layers in inference compute the same, written as other ops."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import tpfx
from tpfx.capture.decompositions import attention, encoder_layer

X = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
LATER = torch.ones(5, 5, dtype=torch.bool).triu(1)
PADDED = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 1, 1, 1]], dtype=torch.bool)
MASKS = [(None, None), (LATER, 0), (PADDED, 1), ((LATER | PADDED[:, None, None]).expand(3, 4, 5, 5), 2)]


def layer(norm_first: bool, gelu: bool) -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    activation = "gelu" if gelu else "relu"
    return nn.TransformerEncoderLayer(
        32, 4, 64, activation=activation, batch_first=True, norm_first=norm_first
    ).eval()


@pytest.mark.parametrize(("mask", "kind"), MASKS)
@pytest.mark.parametrize("norm_first", [False, True])
def test_a_layer(norm_first: bool, mask: Tensor | None, kind: int | None) -> None:
    for gelu in (False, True):
        one = layer(norm_first, gelu)
        heads, norms = one.self_attn, (one.norm1, one.norm2)
        packed = heads.in_proj_weight, heads.in_proj_bias, heads.out_proj.weight, heads.out_proj.bias
        ends = [tensor for part in (*norms, one.linear1, one.linear2) for tensor in (part.weight, part.bias)]
        given = (X, 32, 4, *packed, gelu, norm_first, one.norm1.eps, *ends, mask, kind)
        with torch.no_grad():
            torch.testing.assert_close(encoder_layer(*given), torch._transformer_encoder_layer_fwd(*given))


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize(("mask", "kind"), MASKS)
def test_attention_and_its_weights(mask: Tensor | None, kind: int | None, average: bool) -> None:
    heads = layer(False, False).self_attn
    packed = heads.in_proj_weight, heads.in_proj_bias, heads.out_proj.weight, heads.out_proj.bias
    for given in ((X, X, X), (X, X.clone(), X.clone())):
        with torch.no_grad():
            got = attention(*given, 32, 4, *packed, mask, True, average, kind)
            expected = torch._native_multi_head_attention(X, X, X, 32, 4, *packed, mask, True, average, kind)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("devices", [2, 3])
def test_what_was_seen_in_eval_is_divided_in_training_too(devices: int) -> None:
    torch.manual_seed(0)
    inner = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
    plain = nn.Sequential(nn.TransformerEncoder(inner, 2, enable_nested_tensor=False), nn.Linear(32, 16))
    model = tpfx.compile(copy.deepcopy(plain), ["cpu"] * devices)
    for train in (False, True):
        plain.train(train), model.train(train)
        with torch.set_grad_enabled(train):
            torch.testing.assert_close(model(X), plain(X))
        report = tpfx.report(model)
        assert not report.whole_ops and max(report.bytes_per_device) < 1.25 / devices * report.total_bytes
