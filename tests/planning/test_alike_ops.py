"""Which ops are alike: those that have the same choices at the same cost, on axes of their own."""

from __future__ import annotations

from typing import Any

from tests.support.graphs import planned, read
from tpfx.ir.nodes import is_tensor
from tpfx.passes.context import Context
from tpfx.planning.alike_ops import AlikeOps
from tpfx.planning.sizes import Sizes

TWO = """
    x: f32[3, 8]
    a: f32[16, 8] = parameter
    b: f32[8, 16] = parameter
    c: f32[{rows}, 8] = parameter
    d: f32[8, {rows}] = parameter
    y = linear(relu(linear(x, a)), b)
    return linear(relu(linear(y, c)), d)
"""


def of(text: str, sums: bool = False) -> list[tuple[Any, list[Any]]]:
    """What tells each op from others, and the splits that concern it; all before it may be partial sums."""
    context = Context(2)
    graph = planned(read(text), "match_pinned", 2, context)
    alike = AlikeOps(context.considered, Sizes(graph.nodes))
    partials = {node for node in graph.nodes if node.op == "call_function" and sums}
    return [
        alike.of(node, partials) for node in graph.nodes if node.op == "call_function" and is_tensor(node)
    ]


def test_ops_of_layers_are_alike_on_axes_of_their_own() -> None:
    one, other = of(TWO.format(rows=16))[:2], of(TWO.format(rows=16))[3:5]
    assert [likeness for likeness, _ in one] == [likeness for likeness, _ in other]
    assert [len(own) for _, own in one] == [len(own) for _, own in other] == [2, 1]
    found = of(TWO.format(rows=16))
    assert found[1][0] == found[4][0] and found[1][1] != found[4][1]


def test_ops_of_other_sizes_are_not() -> None:
    found = of(TWO.format(rows=32))
    assert found[0][0] != found[3][0] and found[1][0] != found[4][0]


def test_ops_that_take_partial_sums_are_not() -> None:
    text = TWO.format(rows=16)
    assert all(
        one != other for (one, _), (other, _) in zip(of(text, sums=True)[1:], of(text)[1:], strict=True)
    )


def test_ops_of_one_axis_twice_are_not_like_those_of_two() -> None:
    text = "x: f32[3, 8]\na: f32[8, 8] = parameter\ny = linear(x, {})\nreturn y"
    two, _ = of(text.format("relu(a)"))[-1]
    one, _ = of(text.format("add(a, transpose.int(a, 0, 1))"))[-1]
    assert one != two
