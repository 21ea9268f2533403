"""Ops that are written as simpler ones while a graph is traced, so that these may be split.

A loss over a vocabulary is a maximum, a sum and a lookup, each of which may be split along it; a mean over
elements divides by a number that a rank could not know. What is fast as one op and has a rule stays one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..torch_internals.aot import get_decompositions
from ..torch_internals.fake import tell_shapes

aten = torch.ops.aten

_SIMPLER = [
    # losses
    aten._log_softmax,
    aten._log_softmax_backward_data,
    aten.nll_loss_forward,
    aten.nll_loss_backward,
    aten.nll_loss2d_forward,
    aten.nll_loss2d_backward,
    aten.mse_loss,
    aten.mse_loss_backward,
    aten.smooth_l1_loss,
    aten.smooth_l1_loss_backward,
    aten.huber_loss,
    aten.huber_loss_backward,
    aten.binary_cross_entropy,
    aten.binary_cross_entropy_backward,
    aten.soft_margin_loss,
    aten.soft_margin_loss_backward,
    aten.binary_cross_entropy_with_logits,
    aten.multi_margin_loss,
    aten.multilabel_margin_loss_forward,
    # activations
    aten.elu_backward,
    aten.glu_backward,
    aten.hardsigmoid_backward,
    aten.hardswish_backward,
    aten.hardtanh_backward,
    aten.leaky_relu_backward,
    aten.log_sigmoid_forward,
    aten.log_sigmoid_backward,
    aten.softplus_backward,
    aten.silu_backward,
    aten._prelu_kernel_backward,
    # products and sums
    aten.addmv,
    aten.addr,
    aten.vdot,
    aten.nansum,
    # norms and views
    aten.native_group_norm_backward,
    aten.native_batch_norm_backward,
    aten.select_backward,
    aten.unfold_backward,
    aten.pixel_shuffle,
    aten.pixel_unshuffle,
    aten.channel_shuffle,
]


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


WRITTEN: dict[Any, Callable[..., Any]] = {
    aten._weight_norm_interface.default: weight_norm,
    aten._weight_norm_interface_backward.default: weight_norm_backward,
    aten._trilinear.default: trilinear,
}


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

# ... whose shapes torch before 2.13 does not know, so that Dynamo would leave them out.
FAST_PATH_EFFECTS = (
    tell_shapes(aten._transformer_encoder_layer_fwd.default, lambda src, *_: torch.empty_like(src)),
)


@cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """What AOTAutograd writes ops as: overload to function."""
    found: dict[Any, Callable[..., Any]] = get_decompositions(_SIMPLER)
    return {**found, **WRITTEN, **FAST_PATHS}
