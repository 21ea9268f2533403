"""Calls of every op in the table, drawn at random: what `test_rule_truth` runs.

`SAMPLES` maps an op to functions that draw one call of it; a new row of the table needs one here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch.fx import symbolic_trace

aten = torch.ops.aten
SIZES = (4, 6, 8, 1, 2, 3, 4, 6, 8)  # mostly composite: products have something to be made of


@dataclass
class Case:
    """One call. `dense` and `values` are those of `check_rule`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    dense: bool = False
    values: bool = True


class Sampler:
    """Draws sizes, tensors and arguments."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw
        self.generator = torch.Generator().manual_seed(0)

    def one_of(self, *items: Any) -> Any:
        return self.draw(st.sampled_from(items))

    def flag(self) -> bool:
        return bool(self.draw(st.booleans()))

    def number(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def shape(self, low: int = 1, high: int = 3) -> list[int]:
        return [self.one_of(*SIZES) for _ in range(self.number(low, high))]

    def floats(self, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype)

    def ints(self, *shape: int, high: int = 9, low: int = 0) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def bools(self, *shape: int) -> torch.Tensor:
        return self.ints(*shape, high=2).bool()

    def numbers(self, *shape: int) -> torch.Tensor:
        return self.floats(*shape) if self.flag() else self.ints(*shape, low=-9)

    def dim(self, rank: int) -> int:
        return self.number(-rank, rank - 1)

    def dims(self, rank: int) -> list[int]:
        chosen = self.draw(st.lists(st.integers(0, rank - 1), unique=True, min_size=1, max_size=rank))
        return [dim - rank if self.flag() else dim for dim in chosen]

    def broadcast(self, shape: list[int]) -> list[int]:
        """A shape that broadcasts to this one: some extents are 1, some leading ones are missing."""
        kept = [1 if self.number(0, 3) == 0 else size for size in shape]
        return kept[self.number(0, len(kept)) if self.flag() else 0 :]


Sample = Callable[[Sampler], Case]
SAMPLES: dict[Any, Sample] = {}


def samples(*ops: Any) -> Callable[[Sample], Sample]:
    """Register a function that draws calls, for all of these ops."""

    def register(sample: Sample) -> Sample:
        SAMPLES.update(dict.fromkeys(ops, sample))
        return sample

    return register


@samples(aten.linear.default)
def _linear(s: Sampler) -> Case:
    *lead, k = s.shape(1, 3)
    n = s.one_of(*SIZES)
    x, weight = s.floats(*lead, k), s.floats(n, k)
    return Case((x, weight, s.floats(n)) if s.flag() else (x, weight))


@samples(aten.mm.default)
def _mm(s: Sampler) -> Case:
    m, k, n = s.shape(3, 3)
    return Case((s.floats(m, k), s.floats(k, n)))


@samples(aten._int_mm.default)
def _int_mm(s: Sampler) -> Case:
    m, k, n = s.shape(3, 3)
    return Case(tuple(s.ints(*sizes, low=-128, high=128).to(torch.int8) for sizes in ((m, k), (k, n))))


@samples(aten.view.dtype)
def _view_dtype(s: Sampler) -> Case:
    before, after = s.one_of(
        (torch.uint8, torch.int32), (torch.int64, torch.int16), (torch.int8, torch.uint8)
    )
    *lead, last = s.shape(1, 3)
    times = max(1, after.itemsize // before.itemsize)
    return Case((s.ints(*lead, last * times).to(before), after))


@samples(aten.bmm.default)
def _bmm(s: Sampler) -> Case:
    b, m, k = s.shape(3, 3)
    return Case((s.floats(b, m, k), s.floats(b, k, 4)))


@samples(aten.baddbmm.default)
def _baddbmm(s: Sampler) -> Case:
    b, m, k = s.shape(3, 3)
    kwargs = {"beta": s.one_of(1, 2, 0.5), "alpha": s.one_of(1, 3)} if s.flag() else {}
    return Case((s.floats(*s.broadcast([b, m, 4])), s.floats(b, m, k), s.floats(b, k, 4)), kwargs)


@samples(aten.mv.default)
def _mv(s: Sampler) -> Case:
    m, k = s.shape(2, 2)
    return Case((s.floats(m, k), s.floats(k)))


@samples(aten.dot.default)
def _dot(s: Sampler) -> Case:
    size = s.one_of(*SIZES)
    return Case((s.floats(size), s.floats(size)))


def _square(s: Sampler, *lead: int) -> torch.Tensor:
    """Well-conditioned, symmetric and positive."""
    x = s.floats(*lead, 3, 3)
    return x @ x.mT + 3 * torch.eye(3, dtype=x.dtype)


@samples(aten.linalg_solve_triangular.default)
def _solve(s: Sampler) -> Case:
    lead, count, left = s.shape(0, 2), s.one_of(*SIZES), s.flag()
    sides = s.floats(*lead, 3, count) if left else s.floats(*lead, count, 3)
    return Case((_square(s, *lead).tril(), sides), {"upper": False, "left": left})


@samples(aten._scaled_dot_product_flash_attention_for_cpu.default)
def _attention(s: Sampler) -> Case:
    b, kv, rep, q, e = (
        s.one_of(1, 2, 3),
        s.one_of(1, 2, 3, 4),
        s.one_of(1, 1, 2, 3),
        s.one_of(1, 2, 5),
        s.one_of(2, 4),
    )
    k = s.one_of(q, 4)
    query, key, value = s.floats(b, kv * rep, q, e), s.floats(b, kv, k, e), s.floats(b, kv, k, e)
    kwargs: dict[str, Any] = {"scale": 0.5} if s.flag() else {}
    shape = s.one_of(
        None, (b, kv * rep, q, k), (b, 1, q, k), (1, kv * rep, q, k), (1, 1, 1, k), (q, k), (b, 1, 1, k)
    )
    if shape is not None:
        kwargs["attn_mask"] = s.floats(*shape)
    return Case((query, key, value, 0.0, shape is None and q == k and s.flag()), kwargs)


def _sloped(score: torch.Tensor, example: Any, head: Any, row: Any, column: Any, slopes: torch.Tensor) -> Any:
    return score * slopes[head] + (row - column) * (example + 1)


def _masked(example: Any, head: Any, row: Any, column: Any) -> Any:
    return (row + 2 * head + example) % 3 != column % 2


@samples(torch.ops.higher_order.flex_attention)
def _attention_by_functions(s: Sampler) -> Case:
    b, kv, rep, q, e, f = (
        s.one_of(*sizes) for sizes in ((1, 2, 3), (1, 2, 4), (1, 2, 3), (2, 5), (2, 4), (3,))
    )
    query, key, value = s.floats(b, kv * rep, q, e), s.floats(b, kv, q, e), s.floats(b, kv, q, f)
    counts, blocks = s.one_of((1, 1), (b, 1), (b, kv * rep)), [None] * 8
    blocks[:2] = torch.ones(*counts, 1, dtype=torch.int32), torch.zeros(*counts, 1, 1, dtype=torch.int32)
    mask = (q, q, *blocks, 128, 128, symbolic_trace(_masked))
    return Case((query, key, value, symbolic_trace(_sloped), mask, 0.5, {}, (s.floats(kv * rep),), ()))


@samples(aten._cdist_forward.default)
def _cdist(s: Sampler) -> Case:
    b, m, n = s.shape(3, 3)
    return Case((s.floats(b, m, 4), s.floats(b, n, 4), s.one_of(1.0, 2.0), None))


@samples(aten.native_layer_norm.default)
def _layer_norm(s: Sampler) -> Case:
    shape = s.shape(1, 4)
    normalized = shape[len(shape) - s.number(1, min(2, len(shape))) :]
    weight, bias = s.one_of(
        (None, None), (s.floats(*normalized), None), (s.floats(*normalized), s.floats(*normalized))
    )
    return Case((s.floats(*shape), normalized, weight, bias, 1e-5))


@samples(aten._fused_rms_norm.default)
def _rms_norm(s: Sampler) -> Case:
    shape = s.shape(1, 4)
    normalized = shape[len(shape) - s.number(1, min(2, len(shape))) :]
    return Case((s.floats(*shape), normalized, s.one_of(None, s.floats(*normalized)), s.one_of(None, 1e-5)))


@samples(aten._softmax.default, aten._log_softmax.default)
def _softmax(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.dim(len(shape)), False))


@samples(aten._safe_softmax.default)
def _safe_softmax(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape).masked_fill(s.bools(*shape), -torch.inf), s.dim(len(shape))))


@samples(aten.sum.dim_IntList, aten.mean.dim)
def _reduce(s: Sampler) -> Case:
    shape = s.shape()
    value = s.one_of(s.floats(*shape), s.floats(*shape), s.ints(*shape), s.bools(*shape))
    kwargs = {} if value.is_floating_point() and s.flag() else {"dtype": torch.float64}
    return Case((value, s.one_of(s.dims(len(shape)), s.dims(len(shape)), None, []), s.flag()), kwargs)


@samples(aten.sum.default, aten.mean.default)
def _reduce_all(s: Sampler) -> Case:
    return Case((s.floats(*s.shape(0, 3)),))


@samples(aten.amax.default, aten.amin.default)
def _extreme(s: Sampler) -> Case:
    shape = s.shape()
    value = s.one_of(s.floats(*shape), s.ints(*shape, low=-9), s.bools(*shape))
    return Case((value, s.one_of(s.dims(len(shape)), s.dims(len(shape)), []), s.flag()))


@samples(aten.any.dim, aten.all.dim, aten.prod.dim_int)
def _one_dim(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.numbers(*shape), s.dim(len(shape)), s.flag()))


@samples(aten.any.default, aten.all.default)
def _all(s: Sampler) -> Case:
    return Case((s.bools(*s.shape()),))


@samples(aten.argmax.default, aten.argmin.default)
def _argmax(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.one_of(None, s.dim(len(shape))), s.flag()))


@samples(aten.max.default, aten.min.default, aten.prod.default, aten.median.default, aten.nanmedian.default)
def _of_all(s: Sampler) -> Case:
    return Case((s.floats(*s.shape()),))


@samples(aten.any.dims, aten.all.dims)
def _some_dims(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.bools(*shape), s.one_of(s.dims(len(shape)), None), s.flag()))


@samples(aten.max.dim, aten.min.dim, aten.median.dim, aten.nanmedian.dim, aten.mode.default)
def _with_indices(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.dim(len(shape)), s.flag()))


@samples(aten.kthvalue.default)
def _kth(s: Sampler) -> Case:
    shape = s.shape()
    at = s.dim(len(shape))
    return Case((s.floats(*shape), s.number(1, shape[at]), at, s.flag()))


@samples(aten.logsumexp.default)
def _logsumexp(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.dims(len(shape)), s.flag()))


@samples(aten.norm.ScalarOpt_dim)
def _norm(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.floats(*shape), s.one_of(None, 1, 2), s.dims(len(shape)), s.flag()))


@samples(aten.count_nonzero.dim_IntList)
def _count(s: Sampler) -> Case:
    shape = s.shape()
    return Case((s.ints(*shape, high=2), s.dims(len(shape))))


@samples(aten.var.correction, aten.std.correction, aten.var_mean.correction, aten.std_mean.correction)
def _var(s: Sampler) -> Case:
    shape = s.shape(2, 3)
    dims = s.one_of([s.dim(len(shape))], s.dims(len(shape)), None)
    return Case((s.floats(*shape), dims), {"correction": s.one_of(0, 0.5), "keepdim": s.flag()})


@samples(aten.linalg_vector_norm.default)
def _vector_norm(s: Sampler) -> Case:
    shape = s.shape(2, 3)
    return Case(
        (
            s.floats(*shape),
            s.one_of(2, 1, torch.inf),
            s.one_of([s.dim(len(shape))], s.dims(len(shape)), None),
            s.flag(),
        )
    )
