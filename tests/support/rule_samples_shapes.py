"""Calls of ops that change shapes or work along a dimension, drawn at random; see `rule_samples`."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import strategies as st

from tests.support.rule_samples import SIZES, Case, Sampler, samples

aten = torch.ops.aten


@samples(aten.cumsum.default)
def _cumsum(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.numbers(*shape), s.dim(len(shape))), s.one_of({}, {}, {"dtype": torch.int64}))


@samples(aten.sort.default)
def _sort(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.dim(len(shape)), s.flag()) if s.flag() else (s.floats(*shape),))


@samples(aten.sort.stable)
def _stable_sort(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape),), {"stable": True, **({"dim": s.dim(len(shape))} if s.flag() else {})})


@samples(aten.cumprod.default, aten.cummax.default, aten.cummin.default, aten.logcumsumexp.default)
def _cumulative(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.dim(len(shape))))


@samples(aten.glu.default)
def _glu(s: Sampler) -> Case:
    shape = s.shape()
    at = s.dim(len(shape))
    shape[at] *= 2
    return Case((s.floats(*shape), at))


@samples(aten.triu.default, aten.tril.default)
def _triangle(s: Sampler) -> Case:
    return Case((s.numbers(*s.shape(2, 4)), s.number(-2, 2)))


@samples(aten.diagonal.default, aten.diagonal_copy.default)
def _diagonal(s: Sampler) -> Case:
    shape = s.shape(2, 4)
    first, second = s.draw(st.permutations(range(len(shape))))[:2]
    return Case((s.numbers(*shape), s.number(-1, 1), first, second - len(shape)))


@samples(aten.diag_embed.default)
def _diag_embed(s: Sampler) -> Case:
    shape = s.shape()
    first, second = s.draw(st.permutations(range(len(shape) + 1)))[:2]
    return Case((s.numbers(*shape), s.number(-1, 1), first, second))


@samples(aten.unfold.default)
def _windows(s: Sampler) -> Case:
    shape = s.shape()
    at = s.dim(len(shape))
    return Case((s.numbers(*shape), at, s.number(1, shape[at]), s.one_of(1, 2)))


@samples(aten.as_strided.default)
def _strided(s: Sampler) -> Case:
    return Case((s.floats(4, 6), [3, 2], [6, 1], s.number(0, 4)))


@samples(aten.view_as_real.default)
def _as_real(s: Sampler) -> Case:
    shape = s.shape()
    return Case((torch.complex(s.floats(*shape), s.floats(*shape)),))


@samples(aten.view_as_complex.default)
def _as_complex(s: Sampler) -> Case:
    return Case((s.floats(*s.shape(), 2),))


@samples(aten.topk.default)
def _topk(s: Sampler) -> Case:
    shape = s.shape()
    at = s.dim(len(shape))
    return Case((s.floats(*shape), s.number(1, shape[at]), at, s.flag()))


@samples(aten.flip.default)
def _flip(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.numbers(*shape), s.one_of([], s.dims(len(shape)))))


@samples(aten.roll.default)
def _roll(s: Sampler) -> Case:
    shape = s.shape()
    dims = s.dims(len(shape))
    return Case(
        (s.numbers(*shape), [3]) if s.flag() else (s.numbers(*shape), [s.number(-3, 3) for _ in dims], dims)
    )


@samples(aten.constant_pad_nd.default)
def _pad(s: Sampler) -> Case:
    shape = s.shape()
    amounts = [s.one_of(0, 0, 1, 2) for _ in range(2 * s.number(1, len(shape)))]
    if shape[-1] > 2 and s.flag():
        amounts[0] = -1
    return Case((s.numbers(*shape), amounts, s.one_of(0, 5)))


@samples(aten.hash_tensor.default)
def _hash(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.dims(len(shape))), {"keepdim": s.flag()})


@samples(aten.histc.default)
def _histc(s: Sampler) -> Case:
    return Case((s.floats(*s.shape()), s.one_of(4, 6), -2, 2))


def _reshaped(s: Sampler, shape: list[int]) -> list[int]:
    """The same elements in another shape: neighbours joined, then some dimensions taken apart."""
    joined: list[int] = []
    for size in shape:
        if joined and s.flag():
            joined[-1] *= size
        else:
            joined.append(size)
    result: list[int] = []
    for size in joined:
        divisors = [divisor for divisor in range(1, size + 1) if size % divisor == 0]
        major = s.one_of(*divisors)
        result += s.one_of([size], [major, size // major], [major, 1, size // major])
    if s.flag():
        result[s.number(0, len(result) - 1)] = -1
    return result


@samples(aten.view.default, aten._unsafe_view.default, aten.reshape.default)
def _view(s: Sampler) -> Case:
    shape = s.shape(1, 4)
    return Case((s.numbers(*shape), _reshaped(s, shape)), dense=True)


@samples(aten.t.default)
def _t(s: Sampler) -> Case:
    return Case((s.numbers(*s.shape(1, 2)),))


@samples(aten.transpose.int)
def _transpose(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.numbers(*shape), s.dim(len(shape)), s.dim(len(shape))))


@samples(aten.permute.default)
def _permute(s: Sampler) -> Case:
    shape = s.shape()
    order = torch.randperm(len(shape), generator=s.generator).tolist()
    return Case((s.numbers(*shape), [dim - len(shape) if s.flag() else dim for dim in order]))


@samples(aten.unsqueeze.default)
def _unsqueeze(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.numbers(*shape), s.dim(len(shape) + 1)))


@samples(aten.squeeze.dim)
def _squeeze(s: Sampler) -> Case:
    shape = [s.one_of(1, size) for size in s.shape()]
    return Case((s.numbers(*shape), s.dim(len(shape))))


@samples(aten.squeeze.dims)
def _squeeze_dims(s: Sampler) -> Case:
    shape = [s.one_of(1, size) for size in s.shape()]
    return Case((s.numbers(*shape), s.dims(len(shape))))


@samples(aten.squeeze.default)
def _squeeze_all(s: Sampler) -> Case:
    return Case((s.numbers(*(s.one_of(1, size) for size in s.shape())),))


@samples(aten.expand.default)
def _expand(s: Sampler) -> Case:
    shape = s.shape()
    source = s.broadcast(shape)
    missing = len(shape) - len(source)
    keep = [size if index < missing or s.flag() else -1 for index, size in enumerate(shape)]
    sizes = [
        size if before == 1 else kept
        for before, kept, size in zip([1] * missing + source, keep, shape, strict=True)
    ]
    return Case((s.numbers(*source), sizes))


@samples(aten.repeat.default)
def _repeat(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.numbers(*shape), [s.one_of(1, 1, 2) for _ in range(len(shape) + s.number(0, 1))]))


@samples(aten.cat.default)
def _cat(s: Sampler) -> Case:
    shape = s.shape()
    at = s.dim(len(shape))
    first = s.floats(*shape)
    others = [
        s.floats(*shape[: at % len(shape)], s.one_of(*SIZES), *shape[at % len(shape) + 1 :]) for _ in "ab"
    ]
    empty = [s.floats(0)] if s.number(0, 9) == 0 else []
    return Case((s.one_of([first, *others], [first, first], [first], [first, *empty, others[0]]), at))


@samples(aten.stack.default)
def _stack(s: Sampler) -> Case:
    shape = s.shape()
    return Case(([s.floats(*shape) for _ in range(s.number(1, 3))], s.dim(len(shape) + 1)))


@samples(aten.slice.Tensor)
def _slice(s: Sampler) -> Case:
    shape = s.shape()
    at = s.dim(len(shape))
    size = shape[at]
    start = s.one_of(None, 0, size // 2, size // 4, -(size // 2) or None, s.number(-size - 1, size + 1))
    stop = s.one_of(None, torch.iinfo(torch.int64).max, size // 2, -1, s.number(-size - 1, size + 1))
    return Case((s.numbers(*shape), at, start, stop, *s.one_of((), (), (1,), (2,))))


@samples(aten.select.int)
def _select(s: Sampler) -> Case:
    shape = s.shape()
    at = s.dim(len(shape))
    return Case((s.numbers(*shape), at, s.number(-shape[at], shape[at] - 1)))


@samples(aten.split.Tensor, aten.unsafe_split.Tensor)
def _split(s: Sampler) -> Case:
    shape = s.shape()
    at = s.dim(len(shape))
    return Case((s.numbers(*shape), s.number(1, shape[at] + 1), at))


@samples(aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default)
def _split_with_sizes(s: Sampler) -> Case:
    shape = s.shape()
    at = s.dim(len(shape))
    ends = sorted([0, s.number(0, shape[at]), s.one_of(shape[at] // 2, s.number(0, shape[at])), shape[at]])
    return Case((s.numbers(*shape), [stop - start for start, stop in pairwise(ends)], at))


@samples(aten.unbind.int)
def _unbind(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.numbers(*shape), s.dim(len(shape))))
