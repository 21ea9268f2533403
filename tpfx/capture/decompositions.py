"""Ops that are written as simpler ones while a graph is traced, so that these may be split.

A loss over a vocabulary is a maximum, a sum and a lookup, each of which may be split along it; a mean over
elements divides by a number that a rank could not know. What has a rule stays one op; what has none is
written as torch itself writes it, where it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F

from ..ir.nodes import hint_of
from ..rules import rule_for
from ..rules.random_ops import has_random_tag
from ..torch_internals.aot import DECOMPOSITIONS, is_composite
from ..torch_internals.fake import tell_shapes
from ..torch_internals.fx import OpOverload

aten = torch.ops.aten

# They have rules, and are simpler without.
_SIMPLER = (aten._log_softmax.default, aten.silu_backward.default)
# What makes a part of a graph of a tensor that is made while it is traced: tracing knows them.
_OF_TRACING = (aten.lift.default, aten.lift_fresh.default)


# Of weights, whichever side of them is divided.


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """`aten._weight_norm_interface`: `g * v / |v|`, of the shape of `v`, and the norms over all but `dim`."""
    norms = _products(v, v, dim).sqrt()
    return (v * (g / norms)).to(v.dtype), norms


def weight_norm_backward(
    grad: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """`aten._weight_norm_interface_backward`: the gradients of `v` and of `g`."""
    along = _products(grad, v, dim) / norms
    grad_v = (grad - v * (along / norms)) * (g / norms)
    return grad_v.to(v.dtype), along.to(g.dtype)


def _products(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """The products of elements, summed over all dimensions but one; of half precision in single."""
    wide = torch.promote_types(x.dtype, torch.float32)
    others = [at for at in range(x.dim()) if at != dim % x.dim()]
    return (x.to(wide) * y.to(wide)).sum(others, keepdim=True)


def scaled_sum(bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """`aten.addmm`: `beta * bias + alpha * x @ weight`; without scales it stays one op, a linear layer's."""
    if beta == alpha == 1:
        return NotImplemented
    return _added(torch.mm(x, weight), bias, beta, alpha)


def batch_sum(bias: Tensor, x: Tensor, y: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """`aten.addbmm`: `beta * bias + alpha * (x @ y).sum(0)` of `[b, n, m]` and `[b, m, p]`: one product."""
    return _added(torch.mm(x.transpose(0, 1).flatten(1), y.flatten(0, 1)), bias, beta, alpha)


def _added(product: Tensor, bias: Tensor, beta: float, alpha: float) -> Tensor:
    """A product and a bias, scaled; of a bias times nothing not even what is no number counts."""
    product = product if alpha == 1 else product * alpha
    return product + (bias if beta == 1 else bias * beta) if beta else product


def trilinear(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    expand_x: list[int],
    expand_y: list[int],
    expand_z: list[int],
    sums: list[int],
    unroll_dim: int = 1,
) -> Tensor:
    """`aten._trilinear`: the products of three tensors, each spread over some dimensions, summed over others.

    As products of matrices: `[b, i]` and `[o, i, j]` make `[b, o, j]`, that and `[b, j]` make `[b, o]`.
    """
    rank = x.dim() + len(expand_x)
    given = [[at for at in range(rank) if at not in expanded] for expanded in (expand_x, expand_y, expand_z)]
    kept = [at for at in range(rank) if at not in sums]
    return torch.einsum(x, given[0], y, given[1], z, given[2], kept)


def largest(x: Tensor) -> Tensor:
    """`aten.max` of all elements, which each rank may take of its own."""
    return torch.amax(x)


def least(x: Tensor) -> Tensor:
    """`aten.min` of all elements, which each rank may take of its own."""
    return torch.amin(x)


def cholesky(matrices: Tensor, upper: bool = False) -> Tensor:
    """`aten.cholesky`, its check apart from its factors."""
    factors: Tensor = torch.linalg.cholesky(matrices, upper=upper)
    return factors


def pseudo_inverse(
    matrices: Tensor, *, atol: Tensor | None = None, rtol: Tensor | None = None, hermitian: bool = False
) -> Tensor:
    """`aten.linalg_pinv`: by singular values, of which those up to the tolerance count as nothing."""
    if hermitian:
        values, right = torch.linalg.eigh(matrices)
        left, sizes = right.mH, values.abs()
    else:
        right, values, left = torch.linalg.svd(matrices, full_matrices=False)
        right, left, sizes = left.mH, right.mH, values
    if not sizes.shape[-1]:
        return matrices.mH.clone()
    floor = sizes.amax(-1, keepdim=True) * _relative(matrices, atol, rtol)
    if atol is not None:
        floor = torch.maximum(floor, atol.unsqueeze(-1))
    inverse: Tensor = torch.where(sizes > floor, values.reciprocal(), 0.0).to(matrices.dtype)
    return torch.matmul(right * inverse.unsqueeze(-2), left)


def _relative(matrices: Tensor, atol: Tensor | None, rtol: Tensor | None) -> Tensor | float:
    """Which part of the largest singular value counts as nothing: by default so much as is rounded."""
    if rtol is not None:
        return rtol.unsqueeze(-1)
    rounded = float(max(matrices.shape[-2:]) * torch.finfo(matrices.dtype).eps)
    return rounded if atol is None else torch.where(atol.unsqueeze(-1) > 0, 0.0, rounded)


def empty_dense(x: Tensor, size: Sequence[Any], stride: Sequence[Any], **settings: Any) -> Any:
    """`aten.new_empty_strided`, dimensions in another order, as backward passes of writes into views have it.

    What has gaps, or might have for other sizes, stays as it is.
    """
    slowest_first = sorted(range(len(size)), key=lambda at: (-hint_of(stride[at]), hint_of(size[at]) == 1))
    expected: Any = 1
    for at in reversed(slowest_first):
        if not statically_known_true(size[at] == 1) and not statically_known_true(stride[at] == expected):
            return NotImplemented
        expected = expected * size[at]
    made = x.new_empty([size[at] for at in slowest_first], **settings)
    return made.permute([slowest_first.index(at) for at in range(len(size))])


# Of losses, each example by itself: a mean divides by a number that a rank could not know.


def multi_margin_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    p: Any,
    margin: Any,
    weight: Tensor | None = None,
    reduction: int = 1,
) -> Any:
    """`aten.multi_margin_loss_backward` of a batch."""
    if reduction == 0 or x.dim() < 2:
        return NotImplemented
    each = _of_each(grad, x, reduction)
    return aten.multi_margin_loss_backward(each, x, target, p, margin, weight, 0)


def soft_margin_backward(grad: Tensor, x: Tensor, target: Tensor, reduction: int) -> Tensor:
    """`aten.soft_margin_loss_backward`; torch's own subtracts 1 from what is almost 1."""
    each = -target * grad * torch.sigmoid(-target * x)
    return each / x.numel() if reduction == 1 else each


def multilabel_margin_backward(
    grad: Tensor, x: Tensor, target: Tensor, reduction: int, is_target: Tensor
) -> Any:
    """`aten.multilabel_margin_loss_backward` of a batch."""
    if reduction == 0 or x.dim() < 2:
        return NotImplemented
    return aten.multilabel_margin_loss_backward(_of_each(grad, x, reduction), x, target, 0, is_target)


def _of_each(grad: Tensor, x: Tensor, reduction: int) -> Tensor:
    """The gradients of the losses of a batch, by that of their mean (1) or sum (2)."""
    return (grad / x.shape[0] if reduction == 1 else grad).expand(x.shape[0])


WRITTEN: dict[Any, Callable[..., Any]] = {
    aten._weight_norm_interface.default: weight_norm,
    aten._weight_norm_interface_backward.default: weight_norm_backward,
    aten._trilinear.default: trilinear,
    aten.addmm.default: scaled_sum,
    aten.addbmm.default: batch_sum,
    aten.new_empty_strided.default: empty_dense,
    aten.max.default: largest,
    aten.min.default: least,
    aten.linalg_pinv.atol_rtol_tensor: pseudo_inverse,
    aten.soft_margin_loss_backward.default: soft_margin_backward,
    aten.multi_margin_loss_backward.default: multi_margin_backward,
    aten.multilabel_margin_loss_backward.default: multilabel_margin_backward,
}
if hasattr(aten, "cholesky"):  # gone in torch 2.14
    WRITTEN[aten.cholesky.default] = cholesky


# The ops of torch's encoder layers in inference, written as those that the layers compute in training: their
# weights are then divided as in training, and lie so for both.


def encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Tensor:
    """`aten._transformer_encoder_layer_fwd`: of `src`, `[batch, length, embed_dim]`, one layer's result."""

    def norm(x: Tensor, weight: Tensor, bias: Tensor, wanted: bool) -> Tensor:
        return F.layer_norm(x, (embed_dim,), weight, bias, eps) if wanted else x

    x = norm(src, norm_weight_1, norm_bias_1, norm_first)
    weights = qkv_weight, qkv_bias, proj_weight, proj_bias
    x = src + attention(x, x, x, embed_dim, num_heads, *weights, mask, False, True, mask_type)[0]
    x = norm(x, norm_weight_1, norm_bias_1, not norm_first)
    inner = F.linear(norm(x, norm_weight_2, norm_bias_2, norm_first), ffn_weight_1, ffn_bias_1)
    inner = F.gelu(inner) if use_gelu else F.relu(inner)
    return norm(x + F.linear(inner, ffn_weight_2, ffn_bias_2), norm_weight_2, norm_bias_2, not norm_first)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_head: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`aten._native_multi_head_attention`: the result, `[batch, length, embed_dim]`, and the weights."""
    if query is key and key is value:
        parts = F.linear(query, qkv_weight, qkv_bias).chunk(3, -1)
    else:
        given = zip((query, key, value), qkv_weight.chunk(3), qkv_bias.chunk(3), strict=True)
        parts = tuple(F.linear(x, weight, bias) for x, weight, bias in given)
    q, k, v = (part.unflatten(-1, (num_head, embed_dim // num_head)).transpose(1, 2) for part in parts)
    if mask is None and not need_weights:
        result = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return F.linear(result, proj_weight, proj_bias), None
    scores = q * (embed_dim // num_head) ** -0.5 @ k.transpose(-2, -1)
    if mask is not None:
        hidden = mask.to(torch.bool)  # also one of numbers: whatever is not 0
        if mask_type == 1:  # of keys, for each row of the batch
            hidden = hidden[:, None, None, :]
        scores = scores.masked_fill(hidden, -torch.inf)
    chances = scores.softmax(-1)
    result = F.linear((chances @ v).transpose(1, 2).flatten(2), proj_weight, proj_bias)
    if not need_weights:
        return result, None
    return result, chances.mean(1) if average_attn_weights else chances


FAST_PATHS: dict[Any, Callable[..., Any]] = {
    aten._transformer_encoder_layer_fwd.default: encoder_layer,
    aten._native_multi_head_attention.default: attention,
}

# Of other libraries, which need not be installed.


def packed_linear(
    x: Tensor,
    packed: Tensor,
    shape: Sequence[int],
    scales: Tensor,
    block: int,
    kind: str,
    bias: Tensor | None = None,
    numbers: Tensor | None = None,
    table: Tensor | None = None,
    offset: Tensor | None = None,
) -> Any:
    """`bitsandbytes.gemm_4bit`: a bias apart, and scales that are packed themselves unpacked first, so that
    they may be divided wherever the weight is."""
    if bias is None and numbers is None:
        return NotImplemented
    ops: Any = torch.ops.bitsandbytes
    if numbers is not None:
        scales = ops.dequantize_blockwise(numbers, scales, table, NESTED, torch.float32) + offset
    product = ops.gemm_4bit(x, packed, shape, scales, block, kind)
    return product if bias is None else product + bias


NESTED = 256  # packed scales that have a scale in common
_OF_LIBRARIES = {"bitsandbytes.gemm_4bit.default": packed_linear}


def _of_libraries() -> dict[Any, Callable[..., Any]]:
    """Those that are there by now."""
    found = {}
    for name, written in _OF_LIBRARIES.items():
        namespace, op, overload = name.split(".")
        packet = getattr(getattr(torch.ops, namespace), op, None)
        if packet is not None:
            found[getattr(packet, overload)] = written
    return found


# ... whose shapes torch before 2.13 does not know, so that Dynamo would leave them out.
FAST_PATH_EFFECTS = (
    tell_shapes(aten._transformer_encoder_layer_fwd.default, lambda src, *_: torch.empty_like(src)),
)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What AOTAutograd writes ops as: overload to function."""
    return {**_of_torch(), **_of_libraries()}


@cache
def _of_torch() -> dict[Any, Callable[..., Any]]:
    found = {op: written for op, written in DECOMPOSITIONS.items() if op in _SIMPLER or _is_derived(op)}
    return {**found, **WRITTEN, **FAST_PATHS}


def _is_derived(op: Any) -> bool:
    """Whether an op that torch can write as others is better written so: it has no rule, and needs none.

    What draws would draw other numbers so, and what is made of no tensor may be rounded otherwise.
    """
    if not isinstance(op, OpOverload) or op in _OF_TRACING or op._schema.is_mutable or has_random_tag(op):
        return False
    made_of_tensors = any("Tensor" in str(argument.type) for argument in op._schema.arguments)
    return made_of_tensors and rule_for(op) is None and not is_composite(op)
