"""apply_plan: choices as text and back, and what is refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import tpfx
from tests.support.graphs import chosen, lines, planned, read
from tpfx.ir.parallel_graph import Solution
from tpfx.ir.splits import Splits
from tpfx.passes.apply_plan import GraphChoices, apply_choices, encode_choices
from tpfx.passes.context import Context

MLP = """
    x: f32[3, 64]
    up: f32[256, 64] = parameter
    down: f32[64, 128] = parameter
    pair = split(linear(x, up), 128, 1)
    y = linear(mul(pair[0], pair[1]), down)
    return relu(add(y, y))
"""


def inferred(text: str, ranks: int = 3) -> tuple[Any, Splits]:
    """A graph before anything is chosen, and the splits that are considered."""
    context = Context(ranks)
    return planned(read(text), "match_pinned", ranks, context), context.considered


def test_choices_as_text() -> None:
    context = Context(3)
    graph = planned(read(MLP), "divide", 3, context)
    choices, units = encode_choices(graph, context.considered)
    text = "\n".join(f"{node.name}: {choice}" for node, choice in choices.items())
    assert text == inspect.cleandoc(
        """
        x: input  -> *
        up: input  -> 0
        down: input  -> 0
        linear_default: split * 0 -> 0
        split_tensor: split 0 -> 0 0
        getitem: item  -> 0
        getitem_1: item  -> 0
        mul_tensor: split 0 0 -> 0
        linear_default_1: split 0 0 -> +
        add_tensor: whole * * -> *
        relu_default: whole * -> *
        """
    )
    assert units == {0: [43, 43, 42]}


def test_a_graph_that_is_given_its_choices_is_as_if_chosen() -> None:
    context = Context(3)
    first = planned(read(MLP), "divide", 3, context)
    choices, units = encode_choices(first, context.considered)
    second, splits = inferred(MLP)
    solution = Solution([], 0.0, 0.0, True, 0)
    apply_choices(second, splits, GraphChoices(list(choices.values()), units, solution))
    assert lines(second, inputs=True) == lines(first, inputs=True)
    assert encode_choices(second, splits)[1] == units


COLUMN = """
    x: f32[3, 8]                 # input -> *
    w: f32[16, 8] = parameter    # input -> 0
    y = linear(x, w)             # split * 0 -> 0
    return y
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# input -> *", "", "decides 2 ops of a graph that has 3"),
        ("split * 0 -> 0", "split * 0 0", "decides 2 ops"),
        ("split * 0 -> 0", "split * 9 -> 0", "a choice that cannot be read: 'split * 9 -> 0'"),
        ("split * 0 -> 0", "split * none -> 0", "a choice that cannot be read"),
        ("split * 0 -> 0", "-> 0", "a choice that cannot be read"),
        ("split * 0 -> 0", "split 0 0 -> 0", "'split 0 0 -> 0' for linear_default, which that op does not"),
        ("split * 0 -> 0", "split 1 1 -> *", "which that op does not allow"),
        ("split * 0 -> 0", "pending + * -> +max", "which that op does not allow"),
        ("split * 0 -> 0", "split 0 -> 0", "which that op does not allow"),
        ("split * 0 -> 0", "other * 0 -> 0", "which that op does not allow"),
        ("input -> 0", "split -> 0", "'split -> 0' for w, which that op does not allow"),
        ("input -> 0", "input -> 0 0", "which that op does not allow"),
    ],
)
def test_choices_that_are_not_of_the_graph_are_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(tpfx.PlanError, match=message.replace("*", r"\*")):
        chosen(COLUMN.replace(old, new))


@pytest.mark.parametrize("units", [{0: [8, 9]}, {0: [16]}, {7: [8, 8]}, {0: [8, 4, 4]}])
def test_divisions_that_are_not_of_the_graph_are_refused(units: dict[int, list[int]]) -> None:
    with pytest.raises(tpfx.PlanError, match="the plan divides split"):
        chosen(COLUMN, units=units)


def test_a_division_that_is_given_stays() -> None:
    assert "w f32[16/2, 8] # a:16, b:8, 5+11" in lines(chosen(COLUMN, units={0: [5, 11]}), inputs=True)
