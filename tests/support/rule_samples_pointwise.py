"""Calls of ops that make tensors or work index by index, drawn at random; see `rule_samples`."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.rule_samples import SIZES, Case, Sampler, samples

aten = torch.ops.aten


@samples(aten.full.default)
def _full(s: Sampler) -> Case:
    return Case((s.shape(), 3), {"dtype": torch.float64})


@samples(aten.zeros.default, aten.ones.default)
def _zeros(s: Sampler) -> Case:
    return Case((s.shape(),), {"dtype": torch.int64})


@samples(aten.empty.memory_format)
def _empty(s: Sampler) -> Case:
    return Case((s.shape(),), values=False)


@samples(aten.new_zeros.default, aten.new_ones.default)
def _new(s: Sampler) -> Case:
    return Case((s.floats(*s.shape()), s.shape()))


@samples(aten.new_full.default)
def _new_full(s: Sampler) -> Case:
    return Case((s.floats(*s.shape()), s.shape(), 2.5))


@samples(aten.new_empty.default)
def _new_empty(s: Sampler) -> Case:
    return Case((s.floats(*s.shape()), s.shape()), values=False)


@samples(aten.scalar_tensor.default)
def _scalar(s: Sampler) -> Case:
    return Case((2.5,))


@samples(aten.arange.default)
def _arange(s: Sampler) -> Case:
    return Case((s.one_of(*SIZES),))


@samples(aten.arange.start, aten.arange.start_step)
def _arange_from(s: Sampler) -> Case:
    return Case((1, 5))


def _one(s: Sampler) -> Case:
    return Case((s.numbers(*s.shape()),))


samples(aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default)(_one)
samples(aten.lift_fresh_copy.default, aten.zeros_like.default, aten.ones_like.default, aten.neg.default)(_one)


@samples(aten.hardswish.default, aten._neg_view.default)
def _floats(s: Sampler) -> Case:
    return Case((s.floats(*s.shape()),))


@samples(aten.empty_like.default)
def _empty_like(s: Sampler) -> Case:
    return Case((s.floats(*s.shape()),), values=False)


@samples(aten._to_copy.default)
def _to_copy(s: Sampler) -> Case:
    return Case(
        (s.numbers(*s.shape()),), {"dtype": s.one_of(torch.float64, torch.float32, torch.int32, torch.bool)}
    )


@samples(aten.copy.default, aten.copy_.default)
def _copy(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.numbers(*s.broadcast(shape))))


@samples(aten.full_like.default)
def _full_like(s: Sampler) -> Case:
    return Case((s.floats(*s.shape()), 1.5))


@samples(aten.masked_fill.Scalar)
def _masked_fill(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*s.broadcast(shape)), s.bools(*shape), s.one_of(0, 0.0, -1.5, -torch.inf)))


@samples(aten.where.self)
def _where(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.bools(*s.broadcast(shape)), s.floats(*shape), s.floats(*s.broadcast(shape))))


def _two(s: Sampler) -> tuple[Any, Any]:
    shape = s.shape()
    left, right = s.numbers(*shape), s.numbers(*s.broadcast(shape)) + 20
    return s.one_of(
        (left, right), (left, 3), (right, left + 20), (left, torch.tensor(2.5, dtype=torch.float64))
    )


@samples(aten.mul.Tensor, aten.div.Tensor)
def _product(s: Sampler) -> Case:
    return Case(_two(s))


@samples(aten.floor_divide.default)
def _floor_divide(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.ints(*shape), s.one_of(3, s.ints(*s.broadcast(shape), low=1))))


@samples(aten.add.Tensor, aten.sub.Tensor)
def _sum(s: Sampler) -> Case:
    return Case(_two(s), s.one_of({}, {}, {"alpha": 2}))


@samples(aten.mul.Scalar, aten.div.Scalar)
def _scaled(s: Sampler) -> Case:
    return Case((s.numbers(*s.shape()), s.one_of(2, 0.5)))


@samples(aten.fill.Scalar)
def _fill(s: Sampler) -> Case:
    return Case((s.floats(*s.shape()), 2.0))


@samples(aten.fill.Tensor)
def _fill_with(s: Sampler) -> Case:
    return Case((s.floats(*s.shape()), s.floats()))


@samples(aten.complex.default, aten.polar.default)
def _complex(s: Sampler) -> Case:
    shape = s.shape()
    return Case(
        (s.floats(*shape), s.floats(*s.broadcast(shape)))
        if s.flag()
        else (s.floats(*shape), s.floats(*shape))
    )


@samples(aten._conj.default, aten._conj_physical.default)
def _conjugate(s: Sampler) -> Case:
    shape = s.shape()
    return Case((torch.complex(s.floats(*shape), s.floats(*shape)),))


@samples(aten._prelu_kernel.default)
def _prelu(s: Sampler) -> Case:
    shape = s.shape(2, 3)
    return Case((s.floats(*shape), s.floats(1, shape[1], *[1] * (len(shape) - 2))))


@samples(aten.masked_fill.Tensor)
def _masked_fill_with(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.bools(*s.broadcast(shape)), s.floats()))


@samples(aten.linspace.default)
def _linspace(s: Sampler) -> Case:
    return Case((0.0, 1.0, s.one_of(4, 6)))


@samples(aten.eye.default)
def _eye(s: Sampler) -> Case:
    return Case((s.one_of(4, 6),))


@samples(aten.eye.m)
def _eye_of(s: Sampler) -> Case:
    return Case((s.one_of(4, 6), s.one_of(4, 6)))


@samples(aten.tril_indices.default, aten.triu_indices.default)
def _triangle_indices(s: Sampler) -> Case:
    return Case((s.one_of(4, 6), s.one_of(4, 6)))


@samples(aten.empty_strided.default)
def _empty_strided(s: Sampler) -> Case:
    return Case(([4, 6], [6, 1]), values=False)


@samples(aten.new_empty_strided.default)
def _new_empty_strided(s: Sampler) -> Case:
    return Case((s.floats(*s.shape()), [4, 6], [6, 1]), values=False)
