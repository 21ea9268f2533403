"""Calls of the ops that only backward passes have, drawn at random; see `rule_samples`."""

from __future__ import annotations

from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
from torch._higher_order_ops.flex_attention import create_fw_bw_graph

from tests.support.rule_samples import SAMPLES, SIZES, Case, Sampler, samples

aten = torch.ops.aten


def _like(s: Sampler, value: torch.Tensor) -> torch.Tensor:
    return s.floats(*value.shape)


@samples(aten.convolution_backward.default)
def _convolution_backward(s: Sampler) -> Case:
    x, weight, _, *settings = SAMPLES[aten.convolution.default](s).args
    gradient = _like(s, aten.convolution(x, weight, None, *settings))
    mask = s.one_of([True, True, False], [False, True, False], [True, False, False], [True, True, True])
    return Case((gradient, x, weight, [gradient.shape[1]], *settings, mask))


@samples(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
def _attention_backward(s: Sampler) -> Case:
    b, heads, q, e = s.one_of(1, 2, 3), s.one_of(1, 2, 3, 4, 6), s.one_of(1, 2, 5), s.one_of(2, 4)
    query, key, value = (s.floats(b, heads, q, e) for _ in range(3))
    mask = s.one_of(None, s.floats(b, heads, q, q), s.floats(b, 1, q, q))
    causal = mask is None and s.flag()
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask
    )
    given = (_like(s, out), query, key, value, out, lse, 0.0, causal)
    return Case(given, {} if mask is None else {"attn_mask": mask})


@samples(torch.ops.higher_order.flex_attention_backward)
def _attention_by_functions_backward(s: Sampler) -> Case:
    query, key, value, score, *how = SAMPLES[torch.ops.higher_order.flex_attention](s).args
    out, sums, *_ = torch.ops.higher_order.flex_attention(query, key, value, score, *how)
    slopes = how[-2][0].requires_grad_()
    example = [
        query.new_zeros((), requires_grad=True),
        *(query.new_zeros((), dtype=torch.int) for _ in range(4)),
    ]
    with TransformGetItemToIndex():
        _, traced = create_fw_bw_graph(score, tuple(example), (slopes,))
    return Case((query, key, value, out, sums, _like(s, out), _like(s, sums), score, traced, *how))


@samples(aten.native_layer_norm_backward.default)
def _layer_norm_backward(s: Sampler) -> Case:
    x, normalized, weight, bias, epsilon = SAMPLES[aten.native_layer_norm.default](s).args
    out, mean, rstd = aten.native_layer_norm(x, normalized, weight, bias, epsilon)
    mask = [True, weight is not None, bias is not None]
    return Case((_like(s, out), x, normalized, mean, rstd, weight, bias, mask))


@samples(aten._softmax_backward_data.default)
def _softmax_backward(s: Sampler) -> Case:
    x, dim, _ = SAMPLES[aten._softmax.default](s).args
    return Case((_like(s, x), x.softmax(dim), dim, torch.float64))


@samples(aten.slice_backward.default)
def _slice_backward(s: Sampler) -> Case:
    shape = s.shape()
    at, start, step = s.dim(len(shape)), s.number(0, 3), s.one_of(1, 1, 2)
    limits = (start, s.one_of(2**63 - 1, start + 1, 4), step)
    part = aten.slice.Tensor(torch.empty(shape), at, *limits)
    return Case((_like(s, part), shape, at, *limits))


@samples(aten.embedding_dense_backward.default)
def _embedding_backward(s: Sampler) -> Case:
    rows, ids = s.one_of(1, 4, 6, 12), s.shape(1, 2)
    return Case((s.floats(*ids, s.one_of(*SIZES)), s.ints(*ids, high=rows), rows, s.one_of(-1, 0), False))


@samples(aten.silu_backward.default, aten.mish_backward.default)
def _silu_backward(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.floats(*shape)))


@samples(aten.softshrink_backward.default, aten.hardshrink_backward.default)
def _shrink_backward(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.floats(*shape), 0.5))


@samples(aten.multi_margin_loss_backward.default)
def _margin_backward(s: Sampler) -> Case:
    n, c, reduction = s.one_of(1, 4, 6), s.one_of(2, 3), s.one_of(0, 0, 1)
    weight = s.floats(c) if s.flag() else None
    given = s.floats(*([] if reduction else [n])), s.floats(n, c), s.ints(n, high=c)
    return Case((*given, s.one_of(1, 2), 0.5, weight, reduction))


@samples(aten.multilabel_margin_loss_backward.default)
def _labels_backward(s: Sampler) -> Case:
    n, c, reduction = s.one_of(1, 4, 6), s.one_of(2, 3), s.one_of(0, 0, 1)
    x, target = s.floats(n, c), s.ints(n, c, high=c, low=-1)
    made, wanted = aten.multilabel_margin_loss_forward(x, target, reduction)
    return Case((_like(s, made), x, target, reduction, wanted))


@samples(aten._segment_reduce_backward.default)
def _segments_backward(s: Sampler) -> Case:
    (data, how), settings = (
        SAMPLES[aten.segment_reduce.default](s).args,
        dict(lengths=torch.tensor([2, 0, 3])),
    )
    made = aten.segment_reduce(data, how, **settings)
    return Case((_like(s, made), made, data, how), settings)


@samples(aten._cdist_backward.default)
def _cdist_backward(s: Sampler) -> Case:
    x, y = s.floats(2, 4, 3), s.floats(2, 6, 3)
    return Case((s.floats(2, 4, 6), x, y, 2.0, torch.cdist(x, y)))


def _gradients_of(*forward: Any) -> None:
    """Register calls of the backward of ops, whose arguments are those of the op, and what it made."""
    for op in forward:
        backward = getattr(aten, f"{op._schema.name.removeprefix('aten::')}_backward").default
        SAMPLES[backward] = partial(_backward, op, backward)


def _backward(forward: Any, backward: Any, s: Sampler) -> Case:
    call = SAMPLES[forward](s)
    arguments = zip_longest(forward._schema.arguments, call.args)
    known = {at.name: at.default_value if given is None else given for at, given in arguments}
    made = forward(*call.args)
    made = [made] if isinstance(made, torch.Tensor) else made
    known |= {"grad_output": _like(s, made[0]), "indices": made[-1], "input_size": list(call.args[0].shape)}
    known["output_mask"] = s.one_of([True, True], [True, False], [False, True])
    return Case(tuple(known[argument.name] for argument in backward._schema.arguments))


_gradients_of(
    aten.avg_pool2d.default,
    aten.avg_pool3d.default,
    aten._adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool3d.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d_with_indices.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
    aten.fractional_max_pool2d.default,
    aten.fractional_max_pool3d.default,
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.reflection_pad3d.default,
    aten.replication_pad1d.default,
    aten.replication_pad2d.default,
    aten.replication_pad3d.default,
    aten._upsample_bilinear2d_aa.default,
    aten._upsample_bicubic2d_aa.default,
    aten.grid_sampler_2d.default,
    aten.grid_sampler_3d.default,
)


@samples(aten._embedding_bag_backward.default)
def _bags_backward(s: Sampler) -> Case:
    weight, ids, offsets, by_frequency, mode, sparse, weights, _, padding = SAMPLES[
        aten._embedding_bag.default
    ](s).args
    made, *kept = aten._embedding_bag(
        weight, ids, offsets, by_frequency, mode, sparse, weights, False, padding
    )
    given = (
        _like(s, made),
        ids,
        offsets,
        *kept,
        weight.shape[0],
        by_frequency,
        mode,
        sparse,
        weights,
        padding,
    )
    return Case(given)


@samples(aten._embedding_bag_per_sample_weights_backward.default)
def _bag_weights_backward(s: Sampler) -> Case:
    weight, ids, offsets, *_ = SAMPLES[aten._embedding_bag.default](s).args
    made, bags, *_ = aten._embedding_bag(weight, ids, offsets, False, 1)
    return Case((_like(s, made), weight, ids, offsets, bags, 0))


@samples(aten.diagonal_backward.default)
def _diagonal_backward(s: Sampler) -> Case:
    x, *where = SAMPLES[aten.diagonal.default](s).args
    return Case((s.floats(*aten.diagonal(x, *where).shape), list(x.shape), *where))


@samples(aten.masked_scatter_backward.default)
def _masked_scatter_backward(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.bools(*shape), shape))
