"""Every row of the table of ops is true: split as it allows, an op gives what it gives whole."""

from __future__ import annotations

import zlib
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from tpfx.ops import TABLE
from tpfx.truth import check_rule

from . import rule_samples_shapes  # noqa: F401  (registers its samples)
from .rule_samples import SAMPLES, Case, Sampler

aten = torch.ops.aten


@st.composite
def structures(draw: Any, size: int, depth: int = 2) -> str:
    """What a dimension may be made of, as text."""
    divisors = [divisor for divisor in range(2, size) if size % divisor == 0]
    kinds = ["axis", *(["product"] if divisors else []), *(["concat", "twice"] if size > 1 else [])]
    kind = draw(st.sampled_from(kinds)) if depth else "axis"
    if kind == "product":
        major = draw(st.sampled_from(divisors))
        return f"({draw(structures(major, depth - 1))} {draw(structures(size // major, depth - 1))})"
    if kind == "concat" or (kind == "twice" and size % 2):
        at = draw(st.integers(1, size - 1))
        return f"[{draw(structures(at, depth - 1))}|{draw(structures(size - at, depth - 1))}]"
    return f"[r{size // 2}:{size // 2}|r{size // 2}:{size // 2}]" if kind == "twice" else f"_:{size}"


@st.composite
def cases(draw: Any, op: Any) -> tuple[Case, tuple[str | None, ...]]:
    case = SAMPLES[op](Sampler(draw))
    operands = [value for value in _flat([*case.args, *case.kwargs.values()]) if isinstance(value, torch.Tensor)]
    refined = [draw(st.booleans()) for _ in operands]
    texts = [
        " ".join(draw(structures(size)) if size > 0 else "_:0" for size in value.shape) if refine else None
        for value, refine in zip(operands, refined, strict=True)
    ]
    return case, tuple(texts)


def _flat(values: Any) -> list[Any]:
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def tried(op: Any, examples: int) -> int:
    """How many splits and pending sums were run, over so many calls."""
    counts: list[int] = []

    @hypothesis.settings(max_examples=examples)
    @hypothesis.seed(zlib.crc32(str(op).encode()))
    @hypothesis.given(cases(op), st.booleans(), st.integers(0, 99))
    def run(case: tuple[Case, tuple[str | None, ...]], late: bool, seed: int) -> None:
        call, texts = case
        counts.append(
            check_rule(
                op, *call.args, dims=texts, late=late, dense=call.dense, values=call.values, seed=seed, **call.kwargs
            )
        )

    run()
    return sum(counts)


@pytest.mark.parametrize("op", [op for op in TABLE if op in SAMPLES], ids=str)
def test_rule_is_true(op: Any) -> None:
    print(tried(op, 15))
