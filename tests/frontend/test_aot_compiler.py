"""The compiler behind both doors: in which order it plans, compares processes, divides weights and lowers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tpfx
from tests.support.nets import Net
from tpfx.frontend import aot_compiler

EXAMPLE = (torch.zeros(3, 8),)


class Differs(Exception):
    """What processes that disagree raise."""


def test_processes_are_compared_before_any_weight_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    model, placements = Net(), []

    def compare(mesh: Any, what: str, text: Any) -> None:
        assert what == "the graphs or plans"
        placements.extend(value.placement for value in model.parameters())  # type: ignore[attr-defined]
        raise Differs

    monkeypatch.setattr(aot_compiler, "require_same", compare)
    with pytest.raises(Differs):
        tpfx.compile(model, 2, example_inputs=EXAMPLE)
    assert placements == [None] * 6


def test_planning_divides_the_weights_and_compiles_nothing() -> None:
    model = tpfx.compile(Net(), ["cpu", "cpu"], example_inputs=EXAMPLE)
    report = tpfx.report(model)
    assert report.graphs == 0
    assert report.parallel is not None
    assert all(value.placement is not None for value in model.parameters())  # type: ignore[attr-defined]


def test_forward_and_backward_count_as_one_graph() -> None:
    model, plain, x = tpfx.compile(Net(), ["cpu", "cpu"]), Net(), torch.randn(3, 8, requires_grad=True)
    for expected, net in ((1, model), (1, plain), (1, model)):
        net(x).sum().backward()
        assert tpfx.report(model).graphs == expected
    parallel = tpfx.report(model).parallel
    assert parallel is not None and parallel.backward
    with torch.no_grad():
        model(x)
    assert tpfx.report(model).graphs == 2
