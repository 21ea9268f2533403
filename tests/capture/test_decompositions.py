"""What is written as other ops computes the same: encoder layers in inference, norms of weights, products."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tpfx
from tests.support.packed_linear import Linear4
from tests.support.packed_linear import ops as packed_ops
from tpfx.capture.decompositions import (
    WRITTEN,
    attention,
    decompositions,
    encoder_layer,
    trilinear,
    weight_norm,
    weight_norm_backward,
)
from tpfx.rules import rule_for

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


def one(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


LARGE = one(4, 3, 5) @ torch.tensor([1.0, 1.0, 1.0, 1e-9, 0.0], dtype=torch.float64).diag()
HERMITIAN = LARGE.mT @ LARGE
LABELS = torch.tensor([[2, 0, -1], [1, -1, 0], [0, 1, 2], [-1, 0, 0]])
IS_TARGET = aten.multilabel_margin_loss_forward(one(4, 3), LABELS, 0)[1]
TARGET = torch.tensor([2, 0, 1, 1])
FEW = torch.tensor([0.0, 1e-3, 0.0, 1.0], dtype=torch.float64)

CALLS = [
    (aten.addmm.default, (one(3), one(2, 4), one(4, 3)), {"beta": 0.5, "alpha": 3}),
    (aten.addmm.default, (one(2, 3) * torch.nan, one(2, 4), one(4, 3)), {"beta": 0}),
    (aten.addbmm.default, (one(2, 3), one(5, 2, 4), one(5, 4, 3)), {}),
    (aten.addbmm.default, (one(3), one(5, 2, 4), one(5, 4, 3)), {"beta": 2.0, "alpha": -1}),
    *((aten.new_empty_strided.default, (X, [3, 4], stride), {}) for stride in ([4, 1], [1, 3])),
    *((aten.soft_margin_loss_backward.default, (one(), one(4), one(4).sign(), how), {}) for how in (1, 2)),
    (aten.max.default, (one(3, 2),), {}),
    (aten.min.default, (torch.tensor([1.0, torch.nan]),), {}),
    (aten.linalg_pinv.atol_rtol_tensor, (LARGE,), {}),
    (aten.linalg_pinv.atol_rtol_tensor, (LARGE,), {"atol": FEW}),
    (aten.linalg_pinv.atol_rtol_tensor, (LARGE,), {"rtol": FEW}),
    (aten.linalg_pinv.atol_rtol_tensor, (LARGE,), {"atol": FEW, "rtol": FEW.flip(0)}),
    (aten.linalg_pinv.atol_rtol_tensor, (HERMITIAN,), {"hermitian": True}),
    (aten.linalg_pinv.atol_rtol_tensor, (one(3, 0),), {}),
    *(
        (aten.multi_margin_loss_backward.default, (one(), one(4, 3), TARGET, 2, 0.5, one(3), how), {})
        for how in (1, 2)
    ),
    *(
        (aten.multilabel_margin_loss_backward.default, (one(), one(4, 3), LABELS, how, IS_TARGET), {})
        for how in (1, 2)
    ),
]
if hasattr(aten, "cholesky"):  # gone in torch 2.14
    CALLS.append((aten.cholesky.default, (HERMITIAN + torch.eye(5, dtype=torch.float64), True), {}))


@pytest.mark.parametrize(("op", "args", "settings"), CALLS)
def test_what_is_written_as_others_computes_the_same(op: Any, args: Any, settings: Any) -> None:
    expected, made = op(*args, **settings), decompositions()[op](*args, **settings)
    if op is aten.new_empty_strided.default:  # as memory was
        expected, made = expected.zero_(), made.zero_()
    torch.testing.assert_close(
        made, expected, equal_nan=True, check_stride=op is aten.new_empty_strided.default
    )


def test_what_is_empty_with_gaps_stays_so() -> None:
    for size, stride in (([3, 4], [8, 2]), ([3, 4], [0, 1])):
        assert decompositions()[aten.new_empty_strided.default](X, size, stride) is NotImplemented


def test_a_view_that_is_written_to_is_divided_in_training_too() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 64, bias=False), nn.Linear(64, 32, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x).sin()
            hidden[:, 0] = hidden[:, 1] * 2
            return self.second(F.pad(hidden.mT, (2, 1), mode="circular").mT)

    torch.manual_seed(0)
    plain = Written()
    model = tpfx.compile(copy.deepcopy(plain), ["cpu"] * 2)
    plain(X).square().sum().backward(), model(X).square().sum().backward()
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(other.grad.full(), one.grad, rtol=1e-4, atol=1e-4)
    report = tpfx.report(model)
    assert not report.whole_ops and max(report.bytes_per_device) <= 0.5 * report.total_bytes
    assert "whole" not in report.dump()


def test_every_op_that_is_written_here_is_compared() -> None:
    compared = {op for op, _, _ in CALLS}
    elsewhere = {aten._trilinear.default, *(op for op in WRITTEN if "_weight_norm" in str(op))}
    assert set(WRITTEN) == compared | elsewhere


def test_an_op_without_a_rule_is_written_as_torch_writes_it() -> None:
    """... but not what draws numbers, or has a rule."""
    known = decompositions()
    assert aten.rot90.default in known and rule_for(aten.rot90.default) is None
    assert torch.ops.prims.where.default in known
    for op in (aten.gelu.default, aten.native_layer_norm.default, aten.bernoulli.default, aten.randn.default):
        assert op not in known
    assert aten._log_softmax.default in known and rule_for(aten._log_softmax.default) is not None


def test_a_product_with_scales_is_divided() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(32, 16)), nn.Parameter(torch.randn(16))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.weight, beta=0.5, alpha=2.0).rot90()

    torch.manual_seed(0)
    plain = Scaled()
    model = tpfx.compile(copy.deepcopy(plain), ["cpu"] * 2)
    torch.testing.assert_close(model(X[0]), plain(X[0]))
    report = tpfx.report(model)
    assert not report.whole_ops and max(report.bytes_per_device) < 0.6 * report.total_bytes


def test_a_check_of_the_backward_pass_is_made_there() -> None:
    """The gradient of eigenvalues solves a system, which may be singular."""

    class Values(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3) + torch.arange(3.0).diag())

        def forward(self) -> Tensor:
            return torch.linalg.eigvals(self.weight).abs()

    torch.manual_seed(0)
    plain = Values()
    model = tpfx.compile(copy.deepcopy(plain), ["cpu"] * 2)
    plain().sum().backward(), model().sum().backward()
    assert isinstance(model.weight.grad, tpfx.ShardedTensor) and plain.weight.grad is not None
    torch.testing.assert_close(model.weight.grad.full(), plain.weight.grad, rtol=1e-4, atol=1e-4)


def test_a_tensor_that_is_made_while_a_graph_is_traced_is_a_part_of_it() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

        def forward(self, mask: Tensor) -> Tensor:
            return torch.masked.cumsum(self.weight, 0, mask=mask)

    torch.manual_seed(0)
    plain, mask = Masked(), torch.rand(4, 6) > 0.5
    torch.testing.assert_close(tpfx.compile(copy.deepcopy(plain), ["cpu"] * 2)(mask), plain(mask))


def test_small_gradients_of_a_soft_margin_are_not_rounded_away() -> None:
    given = torch.tensor(1.0), torch.tensor([15.0, -12.0]), torch.tensor([1.0, -1.0]), 2
    op = aten.soft_margin_loss_backward.default
    torch.testing.assert_close(decompositions()[op](*given), op(*given), rtol=1e-5, atol=0)


@pytest.mark.parametrize("nested", [False, True])
def test_a_product_of_a_packed_weight_is_written_without_bias_and_packed_scales(nested: bool) -> None:
    torch.manual_seed(0)
    layer = Linear4(torch.randn(8, 128), torch.randn(8), nested=nested)
    x, state, written = (
        torch.randn(3, 128),
        layer.weight.state,
        decompositions()[packed_ops.gemm_4bit.default],
    )
    plain = x, layer.weight.data, state.shape, torch.ones(16), 64, "nf4"
    assert written(*plain) is NotImplemented
    inner: Any = state.state2
    scales = [inner.absmax, 64, "nf4", layer.bias, state.absmax, inner.code, state.offset] if nested else None
    given = *plain[:3], *(scales or [state.absmax, 64, "nf4", layer.bias])
    torch.testing.assert_close(written(*given), packed_ops.gemm_4bit(*given))
