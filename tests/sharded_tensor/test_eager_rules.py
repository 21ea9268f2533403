"""Every op of the rule table, called eagerly on a sharded tensor, gives what it gives on the whole one."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch._ops import HigherOrderOperator
from torch.utils._pytree import tree_leaves

from tests.support import (  # noqa: F401  (register their samples)
    rule_samples_gradients,
    rule_samples_images,
    rule_samples_indexing,
    rule_samples_matrices,
    rule_samples_pointwise,
    rule_samples_shapes,
)
from tests.support.rule_samples import SAMPLES, Case, Sampler
from tests.support.sharded import MESH, agree
from tpfx.frontend.effects import EFFECTS
from tpfx.ir.shards import Shards
from tpfx.sharded_tensor.tensor import ShardedTensor

RAN: set[Any] = set()  # ops that this worker has run
PER_SHARD: set[Any] = set()  # those that gave a split result


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of a few elements: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@st.composite
def calls(draw: Any, op: Any) -> tuple[Case, Case]:
    """A call on plain tensors, and the same one with one of them split along one dimension."""
    case = SAMPLES[op](Sampler(draw))
    tensors = [leaf for leaf in tree_leaves(case.args) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not tensors:
        return case, case
    chosen = draw(st.sampled_from(tensors))
    dim = draw(st.integers(0, chosen.dim() - 1))
    owned = draw(st.sampled_from(_divisions(chosen.shape[dim])))
    held = ShardedTensor.unsharded(MESH, chosen.clone())
    held.distribute(Shards(((dim, owned),)))

    def replaced(arg: Any) -> Any:
        if isinstance(arg, (list, tuple)):
            return type(arg)(map(replaced, arg))
        return held if arg is chosen else arg

    return case, replace(case, args=tuple(map(replaced, case.args)))


def _divisions(size: int) -> list[Any]:
    """Evenly, unevenly, all to one rank, in several intervals, and overlapping."""
    half, third = size // 2, (size + 2) // 3
    packed = ((0, third), (2 * third, size)) if 2 * third < size else ((0, third),)
    return [
        (((0, half),), ((half, size),)),
        (((0, third),), ((third, size),) if third < size else ()),
        (((0, size),), ()),
        (packed, ((third, min(size, 2 * third)),) if third < size else ()),
        (((0, half + 1),), ((half, size),)) if half < size else (((0, size),), ((0, size),)),
    ]


def plain(value: Any, known: bool) -> list[Any]:
    """The whole of each result; if its numbers are known, all copies of them are the same."""
    leaves = [leaf for leaf in tree_leaves(value) if leaf is not None]
    for leaf in leaves:
        if known and isinstance(leaf, ShardedTensor):
            agree(leaf)
    return [leaf.full() if isinstance(leaf, ShardedTensor) else leaf for leaf in leaves]


@pytest.mark.parametrize("op", list(SAMPLES), ids=str)
def test_an_op_gives_what_it_gives_on_the_whole(op: Any) -> None:
    @hypothesis.settings(max_examples=12, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.seed(zlib.crc32(str(op).encode()))
    @hypothesis.given(calls(op))
    def run(pair: tuple[Case, Case]) -> None:
        case, split = pair
        expected, result = op(*case.args, **case.kwargs), op(*split.args, **split.kwargs)
        if any(isinstance(leaf, ShardedTensor) and leaf.placement for leaf in tree_leaves(result)):
            PER_SHARD.add(op)
        for one, two in zip(plain(result, case.values), plain(expected, case.values), strict=True):
            assert one.shape == two.shape and one.dtype == two.dtype
            if case.values:
                torch.testing.assert_close(one, two, equal_nan=True)

    # Ops that call graphs take split tensors while a model is compiled.
    with EFFECTS.held() if isinstance(op, HigherOrderOperator) else nullcontext():
        run()
    RAN.add(op)


def test_most_ops_ran_shard_by_shard() -> None:
    if len(RAN) < 50:
        pytest.skip("the ops were run by another worker, or not selected")
    print(f"{len(PER_SHARD)} of {len(RAN)} ops gave a split result")
    assert len(PER_SHARD) >= len(RAN) / 4
