"""Calls of ops that read and write by index, drawn at random; see `rule_samples`."""

from __future__ import annotations

import torch

from tests.support.rule_samples import SAMPLES, SIZES, Case, Sampler, samples

aten = torch.ops.aten


@samples(aten.embedding.default)
def _embedding(s: Sampler) -> Case:
    v, d = s.one_of(1, 4, 6, 12), s.one_of(*SIZES)
    padding = s.one_of((), (0,), (-1,))
    return Case((s.floats(v, d), s.ints(*s.shape(0, 2), high=v), *padding))


@samples(aten._embedding_bag.default)
def _embedding_bag(s: Sampler) -> Case:
    rows, mode = s.one_of(4, 6), s.one_of(0, 1, 2)
    offsets = torch.tensor(s.one_of([0], [0, 2], [0, 0, 3]))
    weights = s.floats(5) if mode == 0 and s.flag() else None
    given = s.floats(rows, s.one_of(*SIZES)), s.ints(5, high=rows), offsets
    return Case((*given, False, mode, False, weights, False, s.one_of(-1, 1)))


@samples(aten._embedding_bag_forward_only.default)
def _embedding_bag_alone(s: Sampler) -> Case:
    return SAMPLES[aten._embedding_bag.default](s)


@samples(aten.segment_reduce.default)
def _segments(s: Sampler) -> Case:
    how = s.one_of("sum", "mean", "max", "min", "prod")
    return Case((s.floats(5, *s.shape(0, 2)), how), {"lengths": torch.tensor([2, 0, 3])})


@samples(aten.nonzero_static.default)
def _places(s: Sampler) -> Case:
    return Case((s.bools(*s.shape()),), {"size": 4})


@samples(aten.index_select.default)
def _index_select(s: Sampler) -> Case:
    shape = s.shape()
    at = s.dim(len(shape))
    return Case((s.numbers(*shape), at, s.ints(s.one_of(1, 4, shape[at]), high=shape[at])))


@samples(aten.gather.default)
def _gather(s: Sampler) -> Case:
    shape = s.shape()
    at = s.dim(len(shape))
    taken = [s.one_of(size, max(1, size - 1)) for size in shape]
    taken[at] = s.one_of(1, shape[at], shape[at] + 2)
    return Case((s.numbers(*shape), at, s.ints(*taken, high=shape[at])))


def _indices(s: Sampler, shape: list[int]) -> list[torch.Tensor | None]:
    """Index tensors for some dimensions, side by side or not, which broadcast with each other."""
    given = [s.number(0, 2) == 0 for _ in shape]
    given[s.number(0, len(shape) - 1)] = True
    made = s.one_of([3], [2, 4], [4, 1])
    indices: list[torch.Tensor | None] = []
    for size, has in zip(shape, given, strict=True):
        together = s.one_of(made, [1] * len(made), made[-1:])
        indices.append(s.ints(*together, high=size, low=-size) if has else None)
    while s.flag() and indices[-1] is None:
        indices.pop()
    return indices


@samples(aten.index.Tensor)
def _index(s: Sampler) -> Case:
    shape = s.shape(1, 4)
    return Case((s.numbers(*shape), _mask(s, shape) if s.number(0, 2) == 0 else _indices(s, shape)))


def _mask(s: Sampler, shape: list[int]) -> list[torch.Tensor | None]:
    """A mask of some dimensions side by side."""
    start = s.number(0, len(shape) - 1)
    return [*[None] * start, s.bools(*shape[start : s.number(start + 1, len(shape))])]


@samples(aten.index_put.default, aten._unsafe_index_put.default)
def _index_put(s: Sampler) -> Case:
    shape = s.shape(2, 4)
    target = s.floats(*shape)
    indices = _mask(s, shape) if s.number(0, 2) == 0 else _indices(s, shape)
    accumulate = s.flag()
    # Which write wins is not defined where two meet, unless they write the same.
    values = list(target[tuple(slice(None) if index is None else index for index in indices)].shape)
    written = (
        s.floats(*s.broadcast(values)) if accumulate else torch.full(s.broadcast(values), 7.0).to(target)
    )
    return Case((target, indices, written, accumulate))


@samples(aten.index_copy.default)
def _index_copy(s: Sampler) -> Case:
    shape = s.shape()
    at = s.dim(len(shape))
    count = s.number(1, shape[at])
    source = list(shape)
    source[at] = count
    order = torch.randperm(shape[at], generator=s.generator)[:count]
    return Case((s.floats(*shape), at, order, s.floats(*source)))


@samples(aten.index_add.default)
def _index_add(s: Sampler) -> Case:
    case = _index_copy(s)
    return Case(case.args, s.one_of({}, {"alpha": 2}))


@samples(aten.index_reduce.default)
def _index_reduce(s: Sampler) -> Case:
    case = _index_copy(s)
    return Case((*case.args, s.one_of("amax", "prod", "mean")), {"include_self": s.flag()})


@samples(aten.index_fill.int_Tensor)
def _index_fill_tensor(s: Sampler) -> Case:
    *given, _ = _index_fill(s).args
    return Case((*given, s.floats()))


@samples(aten.index_fill.int_Scalar)
def _index_fill(s: Sampler) -> Case:
    shape = s.shape()
    at = s.dim(len(shape))
    return Case((s.floats(*shape), at, s.ints(s.one_of(1, 3), high=shape[at]), 5.0))


@samples(aten.slice_scatter.default)
def _slice_scatter(s: Sampler) -> Case:
    shape = s.shape()
    at, target = s.dim(len(shape)), s.floats(*shape)
    start, step = s.number(0, shape[at] - 1), s.one_of(1, 2)
    limits = (start, s.one_of(shape[at], start + 1), step)
    source = aten.slice.Tensor(target, at, *limits)
    return Case((target, s.floats(*source.shape), at, *limits))


@samples(aten.select_scatter.default)
def _select_scatter(s: Sampler) -> Case:
    shape = s.shape()
    at, target = s.dim(len(shape)), s.floats(*shape)
    index = s.number(-shape[at], shape[at] - 1)
    return Case((target, s.floats(*target.select(at, index).shape), at, index))


@samples(aten.diagonal_scatter.default)
def _diagonal_scatter(s: Sampler) -> Case:
    target, *where = SAMPLES[aten.diagonal.default](s).args
    return Case((target, s.floats(*aten.diagonal(target, *where).shape).to(target.dtype), *where))


@samples(aten.as_strided_scatter.default)
def _as_strided_scatter(s: Sampler) -> Case:
    return Case((s.floats(4, 6), s.floats(2, 3), [2, 3], [6, 1], 1))


def _scattered(s: Sampler) -> tuple[torch.Tensor, int, torch.Tensor]:
    """A target, a dimension, and an index of it that names no place twice."""
    shape = s.shape(1, 3)
    at = s.dim(len(shape))
    taken = [s.one_of(size, max(1, size - 1)) for size in shape]
    order = torch.rand(shape, generator=s.generator).argsort(at)
    return s.floats(*shape), at, order[tuple(slice(size) for size in taken)].contiguous()


@samples(aten.scatter.src, aten.scatter_add.default)
def _scatter(s: Sampler) -> Case:
    target, at, index = _scattered(s)
    more = [size + s.number(0, 1) for size in index.shape]
    return Case((target, at, index, s.floats(*more)))


@samples(aten.scatter.value)
def _scatter_value(s: Sampler) -> Case:
    return Case((*_scattered(s), 3.0))


@samples(aten.scatter.reduce)
def _scatter_with(s: Sampler) -> Case:
    target, at, index = _scattered(s)
    return Case((target, at, index, s.floats(*index.shape)), {"reduce": s.one_of("add", "multiply")})


@samples(aten.scatter.value_reduce)
def _scatter_value_with(s: Sampler) -> Case:
    return Case((*_scattered(s), 3.0), {"reduce": s.one_of("add", "multiply")})


@samples(aten.scatter_reduce.two)
def _scatter_reduce(s: Sampler) -> Case:
    target, at, index = _scattered(s)
    kind = s.one_of("sum", "prod", "mean", "amax", "amin")
    return Case((target, at, index, s.floats(*index.shape), kind), {"include_self": s.flag()})


@samples(aten.isin.Tensor_Tensor)
def _isin(s: Sampler) -> Case:
    return Case((s.ints(*s.shape()), s.ints(*s.shape(1, 2), high=4)))


@samples(aten.bucketize.Tensor)
def _bucketize(s: Sampler) -> Case:
    return Case((s.floats(*s.shape()), s.floats(s.one_of(1, 4, 6)).sort().values), {"right": s.flag()})


@samples(aten.searchsorted.Tensor)
def _searchsorted(s: Sampler) -> Case:
    if s.flag():
        return Case((s.floats(s.one_of(1, 4, 6)).sort().values, s.floats(*s.shape())))
    *lead, last = s.shape(2, 3)
    values, places = s.floats(*lead, last), s.floats(*lead, s.one_of(1, 4))
    if s.flag():
        return Case((values.contiguous(), places), {"sorter": values.argsort(-1)})
    return Case((values.sort(-1).values, places))


@samples(aten.masked_scatter.default)
def _masked_scatter(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.bools(*shape), s.floats(*shape)))


@samples(aten.take.default)
def _take(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.ints(*s.shape(), high=torch.Size(shape).numel())))


@samples(aten.put.default)
def _put(s: Sampler) -> Case:
    shape = s.shape()
    count = torch.Size(shape).numel()
    return Case((s.floats(*shape), torch.randperm(count, generator=s.generator), s.floats(count)))
