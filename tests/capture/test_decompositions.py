"""What is written as other ops computes the same: encoder layers in inference, norms of weights, products."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tpfx
from tpfx.capture.decompositions import attention, encoder_layer, trilinear, weight_norm, weight_norm_backward

aten = torch.ops.aten

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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("shape", "dim"), [((4, 3), 0), ((4, 3, 5), 0), ((4, 3, 5), 2)])
def test_a_weight_by_its_length_and_direction(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    v, grad = torch.randn(2, *shape).to(dtype)
    g = torch.randn([size if at == dim else 1 for at, size in enumerate(shape)]).to(dtype)
    made = aten._weight_norm_interface(v, g, dim)
    torch.testing.assert_close(weight_norm(v, g, dim), made)
    expected = aten._weight_norm_interface_backward(grad, v, g, made[1], dim)
    torch.testing.assert_close(weight_norm_backward(grad, v, g, made[1], dim), expected)


def test_products_of_three() -> None:
    x, weight, y, grad = (torch.randn(shape) for shape in ((2, 6, 3), (5, 3, 4), (2, 6, 4), (2, 6, 5)))
    calls = [  # a bilinear layer, and the gradients of its operands
        ((x, weight, y), [2, 4], [0, 1], [2, 3], [3, 4]),
        ((grad, weight, y), [3, 4], [0, 1], [2, 3], [2, 4]),
        ((x, grad, y), [2, 4], [3, 4], [2, 3], [0, 1]),
    ]
    for given, *dims in calls:
        torch.testing.assert_close(trilinear(*given, *dims), aten._trilinear(*given, *dims))


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_layers_of_ops_without_rows_are_divided(devices: int) -> None:
    """Normalised weights, shuffled channels and pixels, pads, upsampling, bilinear layers, bags."""

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            norm = nn.utils.parametrizations.weight_norm
            self.bag = nn.EmbeddingBag(24, 48, mode="mean")
            self.into, self.pair = norm(nn.Linear(48, 96)), nn.Bilinear(12, 12, 12)
            self.image = nn.Sequential(
                nn.Hardswish(), nn.ChannelShuffle(3), nn.PixelShuffle(2), nn.ReflectionPad2d(1),
                nn.Upsample(scale_factor=2, mode="bilinear"), nn.PixelUnshuffle(2), nn.MaxPool2d(2),
            )  # fmt: skip

        def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
            made = self.into(self.bag(ids, offsets)).view(-1, 24, 2, 2)
            made = self.image(made).flatten(1)[:, :12]
            made = torch.std_mean(self.pair(made, made), -1)
            return F.binary_cross_entropy_with_logits(made[0], made[1].sigmoid()) + made[1].nansum()

    torch.manual_seed(0)
    plain = Layers()
    model = tpfx.compile(copy.deepcopy(plain), ["cpu"] * devices)
    ids, offsets = torch.randint(0, 24, (7,)), torch.tensor([0, 3, 4])
    for each in (plain, model):
        each(ids, offsets).backward()
    for got, expected in zip(model.parameters(), plain.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(got.grad.full(), expected.grad)
    assert not tpfx.report(model).whole_ops
