"""Calls of the ops that only backward passes have, drawn at random; see `rule_samples`."""

from __future__ import annotations

import torch

from tests.support.rule_samples import SAMPLES, SIZES, Case, Sampler, samples
from tests.support.rule_samples_images import _image

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


@samples(aten.silu_backward.default)
def _silu_backward(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.floats(*shape)))


@samples(aten._cdist_backward.default)
def _cdist_backward(s: Sampler) -> Case:
    x, y = s.floats(2, 4, 3), s.floats(2, 6, 3)
    return Case((s.floats(2, 4, 6), x, y, 2.0, torch.cdist(x, y)))


@samples(aten.avg_pool2d_backward.default)
def _avg_pool_backward(s: Sampler) -> Case:
    x, kernel, stride = SAMPLES[aten.avg_pool2d.default](s).args
    out = aten.avg_pool2d(x, kernel, stride)
    return Case((_like(s, out), x, kernel, stride, [0, 0], False, True, None))


@samples(aten._adaptive_avg_pool2d_backward.default)
def _adaptive_backward(s: Sampler) -> Case:
    x = _image(s, 5, 4)
    return Case((_like(s, aten._adaptive_avg_pool2d(x, [2, 2])), x))


@samples(aten.max_pool2d_with_indices_backward.default)
def _max_pool_backward(s: Sampler) -> Case:
    x, kernel, stride = SAMPLES[aten.max_pool2d_with_indices.default](s).args
    out, indices = aten.max_pool2d_with_indices(x, kernel, stride)
    return Case((_like(s, out), x, kernel, stride, [0, 0], [1, 1], False, indices))


@samples(aten.grid_sampler_2d_backward.default)
def _grid_backward(s: Sampler) -> Case:
    x, grid, *settings = SAMPLES[aten.grid_sampler_2d.default](s).args
    out = aten.grid_sampler_2d(x, grid, *settings)
    return Case((_like(s, out), x, grid, *settings, [True, True]))


@samples(aten.masked_scatter_backward.default)
def _masked_scatter_backward(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.bools(*shape), shape))
