"""Calls of ops that slide over images and signals, drawn at random; see `rule_samples`."""

from __future__ import annotations

import torch

from tests.support.rule_samples import SAMPLES, Case, Sampler, samples

aten = torch.ops.aten


def _image(s: Sampler, *space: int) -> torch.Tensor:
    return s.floats(s.one_of(1, 2, 3), s.one_of(2, 4, 6), *space)


@samples(aten.convolution.default)
def _convolution(s: Sampler) -> Case:
    slides, transposed = s.one_of(1, 1, 2), s.flag()
    groups, inner, outer = s.one_of(
        (1, 4, 6), (1, 3, 2), (6, 1, 1), (4, 1, 2), (4, 2, 1), (2, 4, 2), (3, 2, 4)
    )
    kernel = [s.one_of(1, 2, 3) for _ in range(slides)]
    weight = (groups * inner, outer, *kernel) if transposed else (groups * outer, inner, *kernel)
    bias = s.floats(groups * outer) if s.flag() else None
    stride, dilation = [s.one_of(1, 2)] * slides, [s.one_of(1, 1, 2)] * slides
    x = s.floats(s.one_of(1, 2, 3), groups * inner, *[5] * slides)
    padding, more = [s.number(0, 1)] * slides, [0] * slides
    return Case((x, s.floats(*weight), bias, stride, padding, dilation, transposed, more, groups))


@samples(aten.native_group_norm.default)
def _group_norm(s: Sampler) -> Case:
    n, groups, inside, space = (
        s.one_of(1, 2, 3),
        s.one_of(1, 2, 4, 6),
        s.one_of(1, 2, 4),
        s.one_of([], [3], [3, 2]),
    )
    channels, size = groups * inside, torch.Size(space).numel()
    vectors = s.one_of((None, None), (s.floats(channels), s.floats(channels)))
    return Case((s.floats(n, channels, *space), *vectors, n, channels, size, groups, 1e-5))


@samples(aten._native_batch_norm_legit_no_training.default)
def _batch_norm(s: Sampler) -> Case:
    x = _image(s, *s.one_of([], [3], [3, 2]))
    channels = x.shape[1]
    vectors = s.one_of((None, None), (s.floats(channels), s.floats(channels)))
    return Case((x, *vectors, s.floats(channels), s.floats(channels).abs() + 0.1, 0.1, 1e-5))


@samples(aten._native_batch_norm_legit.no_stats)
def _batch_norm_of_the_batch(s: Sampler) -> Case:
    x, weight, bias, _, _, *settings = SAMPLES[aten._native_batch_norm_legit_functional.default](s).args
    return Case((x, weight, bias, *settings))


@samples(aten._native_batch_norm_legit_functional.default)
def _batch_norm_training(s: Sampler) -> Case:
    x = _image(s, *s.one_of([3], [3, 2]))
    channels = x.shape[1]
    vectors = s.one_of((None, None), (s.floats(channels), s.floats(channels)))
    return Case((x, *vectors, s.floats(channels), s.floats(channels).abs() + 0.1, True, 0.1, 1e-5))


@samples(aten.avg_pool2d.default, aten.max_pool2d_with_indices.default)
def _pool(s: Sampler) -> Case:
    return Case((_image(s, 5, 4), [2, 2], [s.one_of(1, 2)] * 2))


@samples(aten.avg_pool3d.default, aten.max_pool3d_with_indices.default)
def _pool3d(s: Sampler) -> Case:
    return Case((_image(s, 4, 5, 4), [2, 2, 2], [s.one_of(1, 2)] * 3))


@samples(aten._adaptive_avg_pool2d.default, aten.adaptive_max_pool2d.default)
def _adaptive(s: Sampler) -> Case:
    return Case((_image(s, 5, 4), [s.one_of(2, 3), 2]))


@samples(aten._adaptive_avg_pool3d.default, aten.adaptive_max_pool3d.default)
def _adaptive3d(s: Sampler) -> Case:
    return Case((_image(s, 4, 5, 4), [2, 3, 2]))


@samples(aten.upsample_nearest1d.default)
def _nearest1d(s: Sampler) -> Case:
    return Case((_image(s, 3), [s.one_of(6, 7)]))


@samples(aten.upsample_linear1d.default)
def _linear1d(s: Sampler) -> Case:
    return Case((_image(s, 3), [s.one_of(6, 7)], s.flag()))


@samples(aten.upsample_nearest2d.default, aten._upsample_nearest_exact2d.default)
def _nearest2d(s: Sampler) -> Case:
    return Case((_image(s, 3, 4), [s.one_of(6, 7), 5]))


@samples(
    aten.upsample_bilinear2d.default,
    aten._upsample_bilinear2d_aa.default,
    aten.upsample_bicubic2d.default,
    aten._upsample_bicubic2d_aa.default,
)
def _smooth2d(s: Sampler) -> Case:
    return Case((_image(s, 3, 4), [s.one_of(6, 7), 5], s.flag()))


@samples(aten.grid_sampler_2d.default)
def _grid(s: Sampler) -> Case:
    x = _image(s, 3, 4)
    return Case((x, s.floats(x.shape[0], 2, 5, 2).clamp(-1, 1), 0, s.one_of(0, 1), s.flag()))


@samples(aten.grid_sampler_3d.default)
def _grid3d(s: Sampler) -> Case:
    x = _image(s, 3, 4, 2)
    return Case((x, s.floats(x.shape[0], 2, 5, 3, 3).clamp(-1, 1), 0, s.one_of(0, 1), s.flag()))


@samples(aten.im2col.default)
def _im2col(s: Sampler) -> Case:
    return Case((s.floats(s.one_of(2, 4, 6), 4, 5, 4), [2, 2], [1, 1], [0, 1], [s.one_of(1, 2)] * 2))


@samples(aten.col2im.default)
def _col2im(s: Sampler) -> Case:
    return Case((s.floats(s.one_of(2, 4, 6), 8, 6), [3, 4], [2, 2], [1, 1], [0, 0], [1, 1]))


@samples(aten.max_unpool2d.default)
def _unpool(s: Sampler) -> Case:
    made, places = aten.max_pool2d_with_indices(_image(s, 5, 4), [2, 2])
    return Case((made, places, [5, 4]))


@samples(aten.max_unpool3d.default)
def _unpool3d(s: Sampler) -> Case:
    made, places = aten.max_pool3d_with_indices(_image(s, 4, 5, 4), [2, 2, 2])
    return Case((made, places, [4, 5, 4], [2, 2, 2], [0, 0, 0]))


@samples(aten.fractional_max_pool2d.default)
def _fractional(s: Sampler) -> Case:
    x = _image(s, 6, 5)
    return Case((x, [2, 2], [3, s.one_of(2, 3)], s.floats(*x.shape[:2], 2).sigmoid()))


@samples(aten.fractional_max_pool3d.default)
def _fractional3d(s: Sampler) -> Case:
    x = _image(s, 4, 6, 5)
    return Case((x, [2, 2, 2], [2, 3, s.one_of(2, 3)], s.floats(*x.shape[:2], 3).sigmoid()))


@samples(aten.reflection_pad1d.default, aten.replication_pad1d.default)
def _pad1d(s: Sampler) -> Case:
    return Case((_image(s, 4), [s.one_of(0, 1), 2]))


@samples(aten.reflection_pad2d.default, aten.replication_pad2d.default)
def _pad2d(s: Sampler) -> Case:
    return Case((_image(s, 4, 3), [s.one_of(0, 1), 2, 1, 0]))


@samples(aten.reflection_pad3d.default, aten.replication_pad3d.default)
def _pad3d(s: Sampler) -> Case:
    return Case((_image(s, 4, 3, 3), [s.one_of(0, 1), 2, 1, 0, 1, 1]))


@samples(aten._fft_c2c.default)
def _fft(s: Sampler) -> Case:
    shape = s.shape(2, 3)
    x = torch.complex(s.floats(*shape), s.floats(*shape))
    return Case((x, s.one_of([len(shape) - 1], [0, len(shape) - 1]), 0, s.flag()))


@samples(aten._fft_r2c.default)
def _fft_of_reals(s: Sampler) -> Case:
    shape = s.shape(2, 3)
    return Case((s.floats(*shape), s.one_of([len(shape) - 1], [0, len(shape) - 1]), 0, s.flag()))


@samples(aten._fft_c2r.default)
def _fft_to_reals(s: Sampler) -> Case:
    shape = s.shape(2, 3)
    x = torch.complex(s.floats(*shape), s.floats(*shape))
    return Case((x, [len(shape) - 1], 0, 2 * (shape[-1] - 1) or 1))
