"""Reading a rule's string, and binding it to the dimensions of a call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.fx import Graph

from tests.support.calls import call, text_of
from tpfx.ir.axes import same, show
from tpfx.ir.nodes import arguments, tensor_nodes
from tpfx.ir.op_dims import Bound
from tpfx.rules.rule import Rule, Term, parse
from tpfx.verify.rule_check import check_rule

aten = torch.ops.aten


def test_parse() -> None:
    def term(*factors: str, whole: tuple[str, ...] = ()) -> Term:
        return Term(factors, frozenset(whole))

    pattern = parse("... (g r) e!, k -> ... k")
    assert pattern.operands == ((term(), term("g", "r"), term("e", whole=("e",))), (term("k"),))
    assert pattern.results == ((term(), term("k")),)
    assert pattern.whole == {"e"}


def test_parse_of_nothing_on_the_right() -> None:
    assert parse("k, k ->").results == ((),)


def test_rule_without_arrow_is_refused() -> None:
    with pytest.raises(ValueError, match="a rule needs '->': 'm k, k n'"):
        parse("m k, k n")


@pytest.mark.parametrize(
    ("op", "pattern", "texts", "result", "expected"),
    [
        (
            aten.mm.default,
            "m k, k n -> m n",
            ("m:2 (h:4 d:8)", "k:32 [a:3|a]"),
            (2, 6),
            "a:2 (b:4 c:8), (b:4 c:8) [d:3|d:3] -> a:2 [d:3|d:3]; contracted (b:4 c:8)",
        ),
        (
            aten.mm.default,
            "m k!, k n -> m n",
            ("m:2 k:4", "k n:3"),
            (2, 3),
            "a:2 b:4, b:4 c:3 -> a:2 c:3; whole b:4",
        ),
        (aten.add.Tensor, "..., ... -> ...", ("a:2 b:3", "b"), (2, 3), "a:2 b:3, b:3 -> a:2 b:3"),
        (aten.add.Tensor, "..., ... -> ...", ("a:2 b:3", "a 1"), (2, 3), "a:2 b:3, a:2 1 -> a:2 b:3"),
        (
            aten.bmm.default,
            "(g r) m k, g k n -> (g r) m n",
            ("h:6 m:4 k:5", "g:3 k n:2"),
            (6, 4, 2),
            "(a:3 b:2) c:4 d:5, a:3 d:5 e:2 -> (a:3 b:2) c:4 e:2; contracted d:5",
        ),
    ],
)
def test_bind(op: Any, pattern: str, texts: tuple[str, ...], result: tuple[int, ...], expected: str) -> None:
    bound = Rule(pattern).bind(call(op, *texts, result=result))
    bound.settle()
    assert text_of(bound) == expected


def test_what_cannot_be_matched_is_whole_once_inference_is_over() -> None:
    bound = Rule("m k, k n -> m n").bind(
        call(aten.mm.default, "m:2 (a:4 b:6)", "(c:6 d:4) n:3", result=(2, 3))
    )
    assert not bound.whole
    bound.settle()
    assert show(bound.whole) == ["(a:4 b:6)", "(c:6 d:4)"]


def test_factors_whose_sizes_do_not_divide_are_whole() -> None:
    pattern = "(g r) m k, g k n -> (g r) m n"
    bound = Rule(pattern).bind(call(aten.bmm.default, "h:6 m:4 k:5", "g:4 k n:2", result=(6, 4, 2)))
    assert "a:6" in show(bound.whole)
    assert bound.results[0][0] in bound.whole


def test_result_of_another_size_is_new_and_whole() -> None:
    bound = Rule("m k, k n -> m n").bind(call(aten.mm.default, "m:2 k:4", "k n:3", result=(2, 5)))
    assert bound.results[0][1] in bound.whole
    assert same(bound.results[0][0], bound.operands[0][0])


def test_operands_that_the_pattern_leaves_out_are_whole() -> None:
    bound = Rule("... k, n k -> ... n").bind(
        call(aten.linear.default, "m:2 k:4", "n:3 k", "n", result=(2, 3))
    )
    assert bound.operands[2][0] in bound.whole


def test_result_that_the_pattern_leaves_out_is_whole() -> None:
    drawn = call(aten.sort.default, "m:2 n:4")
    drawn.node.meta["val"] = (torch.empty(2, 4, device="meta"), torch.empty(2, 4, device="meta"))
    bound = Rule("m n! -> m n").bind(drawn)
    assert all(dim in bound.whole for dim in bound.results[1])


def test_function_may_say_that_it_is_linear() -> None:
    said = Bound([], [], linear=((1,),))
    drawn = call(aten.add.Tensor, "a:2", "a", result=(2,))
    assert Rule(lambda _: said, linear=((0,),)).bind(drawn).linear == ((1,),)
    assert Rule(lambda _: Bound([], []), linear=((0,),)).bind(drawn).linear == ((0,),)


def test_arguments_by_name_with_defaults() -> None:
    drawn = call(aten.slice.Tensor, "a:8", args=(0, 2), result=(6,))
    assert [drawn[name] for name in ("dim", "start", "end", "step")] == [0, 2, None, 1]
    assert drawn.get("nothing", 7) == 7
    assert drawn.dim(-1) == 0


def test_tensors_in_lists_are_operands_as_often_as_they_occur() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(2, device="meta")
    node = graph.call_function(aten.cat.default, ([x, x],))
    assert list(tensor_nodes(node)) == [x, x]
    assert arguments(node)["dim"] == 0


def test_products_of_size_one_do_not_hide_other_factors() -> None:
    pattern = "b (g r) q! e!, b g k! e!, b g k! f! -> b (g r) q! f!, b (g r) q!"
    query = torch.randn(4, 1, 3, 8)
    op = aten._scaled_dot_product_flash_attention_for_cpu.default
    assert check_rule(op, query, query, query, rule=Rule(pattern, pad_empty_shards=True)) > 0


@pytest.mark.parametrize("name", ["attention", "linear", "never_empty"])
def test_a_lowering_is_no_text(name: str) -> None:
    """The names of lowerings are values, so that a misspelt one cannot be written."""
    with pytest.raises(TypeError, match=f"lower='{name}' of the rule 'm -> m' is none of .*Lowering.LINEAR"):
        Rule("m -> m", lower=name)  # type: ignore[arg-type]
