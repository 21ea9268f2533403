"""Random programs, split over 1 to 5 devices, say what they say unsharded.

`make fuzz` runs 2,000 of them. A failure is printed as a program: it becomes a test of its own here.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import tpfx
from tests.support.compare import largest_error
from tests.support.programs import STEPS, WIDTHS, Program, Step
from tpfx.ir.annotations import choice_of

COUNTS: Counter[str] = Counter()
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}

programs = st.lists(
    st.tuples(st.sampled_from(sorted(STEPS)), *[st.integers(0, 7)] * 4), min_size=1, max_size=6
)


def run(steps: tuple[Step, ...], devices: int, batch: int, length: int, width: int, double: bool) -> None:
    """Compare a program with itself split."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    dtype = torch.float64 if double else torch.float32
    plain = Program(steps, width, dtype).eval()
    split = tpfx.compile(copy.deepcopy(plain), ["cpu"] * devices, timeout=30)
    x = torch.randn(batch, length, width, dtype=dtype)
    with torch.no_grad():
        expected = plain(x)
        error = largest_error(expected, split(x))
    assert error < TOLERANCE[dtype]
    report = tpfx.report(split)
    assert not report.whole_ops
    _count(report, devices)


def _count(report: tpfx.Report, devices: int) -> None:
    COUNTS["programs"] += 1
    COUNTS[f"on {devices} devices"] += 1
    if report.parallel is None:
        return
    for node in report.parallel.graph.nodes:
        choice = choice_of(node)
        if choice is not None and choice.kind in ("split", "pending"):
            COUNTS[f"{choice.kind} ops"] += 1
    for one in report.collectives:
        COUNTS[f"collectives: {one.kind}"] += 1


def fuzz(examples: int, seed: int) -> None:
    """Run so many programs."""
    sizes: Any = (
        st.integers(1, 5),
        st.integers(1, 3),
        st.integers(2, 6),
        st.sampled_from(WIDTHS),
        st.booleans(),
    )

    @hypothesis.settings(max_examples=examples, print_blob=False)
    @hypothesis.seed(seed)
    @hypothesis.given(programs, *sizes)
    def any_program(
        steps: list[Step], devices: int, batch: int, length: int, width: int, double: bool
    ) -> None:
        run(tuple(steps), devices, batch, length, width, double)

    any_program()


@pytest.mark.parametrize("seed", range(2))
def test_some_programs(seed: int) -> None:
    fuzz(20, seed)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_programs(seed: int) -> None:
    before = Counter(COUNTS)
    fuzz(int(os.environ.get("TPFX_FUZZ", "100")), seed)
    print("", *(f"{count:6,} {what}" for what, count in sorted((COUNTS - before).items())), sep="\n")


def results_of(plain: Program, x: torch.Tensor, executor: str) -> list[torch.Tensor]:
    """What a program split over three devices returns, without gradients and with, and its gradients."""
    torch._dynamo.reset()
    split = tpfx.compile(copy.deepcopy(plain), ["cpu"] * 3, timeout=30, device_compiler=executor)
    with torch.no_grad():
        found = [*split(x)]
    results = split(x)
    loss: Any = sum(one.double().square().mean() for one in results if one.is_floating_point())
    if loss.requires_grad:  # a weight may be used by nothing
        loss.backward()
    gradients = (one.grad for one in split.parameters() if one.grad is not None)
    weights = [one.full() if isinstance(one, tpfx.ShardedTensor) else one for one in gradients]
    return [*found, *(one.detach() for one in results), *weights]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_native_and_eager_say_the_same_to_the_bit() -> None:
    @hypothesis.settings(max_examples=25, print_blob=False)
    @hypothesis.seed(7)
    @hypothesis.given(programs)
    def any_program(steps: list[Step]) -> None:
        torch.manual_seed(0)
        plain = Program(tuple(steps), 12)
        x = torch.randn(2, 4, 12)
        native, eager = (results_of(plain, x, executor) for executor in ("native", "eager"))
        for one, other in zip(native, eager, strict=True):
            assert torch.equal(one.nan_to_num(), other.nan_to_num())

    any_program()


# What the fuzzer has found: steps, devices, batch, length, width, double precision.
CASES: dict[str, tuple[tuple[Step, ...], int, int, int, int, bool]] = {
    "a scatter whose index has the axis that it writes along": (
        (("experts", 4, 3, 3, 7),),
        2,
        1,
        5,
        10,
        False,
    ),
    "a view of an input, with an offset and sizes that vary": (
        (("cut", 0, 4, 2, 2), ("attention", 0, 0, 0, 1)),
        2,
        1,
        2,
        6,
        False,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_case_that_was_wrong_once(name: str) -> None:
    run(*CASES[name])
