"""The ways to carry out an op: by its rule, by the axes of what is kept, and by what its operands may be."""

from __future__ import annotations

import torch
from torch.fx import Graph, Node
from torch.nn import functional as F

from tests.support.inferred import calls, inferred
from tpfx.ir.annotations import Choice, bound_of
from tpfx.ir.axes import show
from tpfx.ir.layout import Layout, Partial, Split
from tpfx.ir.splits import Splits
from tpfx.planning.choices import options, split_choice

RANKS = 2


def written(graph: Graph, choice: Choice) -> str:
    """A choice with its splits by the sizes of their axes: split *, 16 -> 16"""

    def text(layout: Layout) -> str:
        if isinstance(layout, Split):
            return "×".join(str(axis.size) for axis in layout.axes)
        return "+" if isinstance(layout, Partial) else "*"

    return f"{choice.kind} {', '.join(map(text, choice.operands))} -> {', '.join(map(text, choice.results))}"


def ways(graph: Graph, op: str, pending: frozenset[Node] = frozenset(), ranks: int = RANKS) -> list[str]:
    (node,) = calls(graph, op)
    return [written(graph, choice) for choice in options(node, Splits(graph, ranks), pending)]


def test_column_and_row_parallel_are_one_rule_split_along_one_factor_or_the_other() -> None:
    graph = inferred(lambda w, x: F.linear(x, w["w"]), {"w": torch.zeros(16, 8)}, torch.zeros(3, 8))
    assert ways(graph, "linear") == [
        "whole *, * -> *",
        "split 8, 8 -> +",  # row
        "split *, 16 -> 16",  # column
    ]


def test_only_axes_of_what_is_kept_are_considered() -> None:
    graph = inferred(lambda w, x: torch.relu(x) @ w["w"], {"w": torch.zeros(8, 4)}, torch.zeros(3, 8))
    assert ways(graph, "relu") == ["whole * -> *", "split 8 -> 8"]  # not along the 3 rows


def test_a_sum_passes_through_what_is_linear_where_an_operand_may_be_one() -> None:
    graph = inferred(lambda w, x: (x @ w["w"]) * 2 + x, {"w": torch.zeros(8, 8)}, torch.zeros(3, 8))
    (mul,) = calls(graph, "mul")
    assert ways(graph, "mul") == ["whole * -> *", "split 8 -> 8"]
    assert ways(graph, "mul", frozenset(mul.all_input_nodes))[-1] == "pending + -> +"
    assert ways(graph, "add", frozenset([mul]))[-1] == "pending +, + -> +"  # x too, as partial sums


def test_what_must_be_whole_is_not_split() -> None:
    graph = inferred(lambda w, x: torch.softmax(x + w["b"], -1), {"b": torch.zeros(8)}, torch.zeros(3, 8))
    assert ways(graph, "softmax") == ["whole * -> *"]
    assert ways(graph, "add") == ["whole *, * -> *", "split 8, 8 -> 8"]
    (node,) = calls(graph, "softmax")
    bound = bound_of(node)
    assert bound is not None
    (split,) = Splits(graph, RANKS)
    assert show(bound.whole) == show(split.axes)
    assert split_choice(bound, split) is None


def test_random_numbers_are_drawn_whole() -> None:
    values = {name: torch.zeros(1, 4, 2, 8) for name in "qkv"}

    def attention(dropped: float) -> Graph:
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return inferred(lambda w: op(w["q"], w["k"], w["v"], dropped), values)

    drops, keeps = attention(0.5), attention(0.0)
    assert ways(drops, "attention") == ["whole *, *, * -> *, *"]
    assert "split 4, 4, 4 -> 4, 4" in ways(keeps, "attention")


def test_an_axis_that_runs_through_a_tensor_twice_is_not_split() -> None:
    graph = inferred(lambda w: F.linear(w["w"], w["w"]), {"w": torch.zeros(6, 4)})
    assert ways(graph, "linear") == ["whole *, * -> *", "split 4, 4 -> +"]  # the result is 6 by the same 6


def test_two_axes_together_where_ranks_are_more_than_the_units_of_one() -> None:
    """8 heads of queries share 2 of keys and values: 4 ranks take the axis inside as well."""
    values = {"q": torch.zeros(1, 8, 2, 4), "k": torch.zeros(1, 2, 2, 4), "v": torch.zeros(1, 2, 2, 4)}
    graph = inferred(
        lambda w: F.scaled_dot_product_attention(w["q"], w["k"], w["v"], enable_gqa=True), values
    )
    assert ways(graph, "attention", ranks=2) == [
        "whole *, *, * -> *, *",
        "split 2, 2, 2 -> 2, 2",
        "split 4, *, * -> 4, 4",
    ]
    assert ways(graph, "attention", ranks=4)[2] == "split 2×4, 2×4, 2×4 -> 2×4, 2×4"
