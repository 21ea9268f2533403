"""Which calls draw random numbers, or may."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

import tpfx
from tests.support.random_nets import noise, shake
from tpfx.rules.random_ops import calls_in_order, inner_draws, is_opaque, is_random, may_draw, may_draw_inside
from tpfx.rules.table import TABLE

aten, higher_order = torch.ops.aten, torch.ops.higher_order


def call(target: Any, *args: Any, **kwargs: Any) -> Node:
    return Graph().call_function(target, args, kwargs)


def test_attention_draws_where_it_drops_something() -> None:
    attention = aten._scaled_dot_product_flash_attention_for_cpu.default
    assert [is_random(call(attention, 0, 0, 0, rate)) for rate in (0.0, 0.5)] == [False, True]
    assert is_random(call(aten.rand.default, [3])) and not is_random(call(aten.add.Tensor, 1, 2))


def test_an_op_without_a_rule_that_is_not_torchs_may_draw() -> None:
    assert may_draw(call(torch.ops.tpfx_tests.noise.default, 0)) and noise and shake
    assert may_draw(call(higher_order.auto_functionalized_v2, torch.ops.tpfx_tests.shake.default, x=0))
    assert not is_opaque(aten.digamma.default) and not is_opaque(torch.ops._c10d_functional.broadcast.default)


def test_a_rule_says_that_an_op_is_a_function_of_what_it_is_given() -> None:
    @torch.library.custom_op("tpfx_tests::ruled", mutates_args=())
    def ruled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    target = torch.ops.tpfx_tests.ruled.default
    assert is_opaque(target)
    tpfx.register_rule(ruled, "... -> ...")
    assert not is_opaque(target)
    del TABLE[target]  # what a test registers goes with it
    assert is_opaque(target)


def test_what_draws_in_a_graph_that_a_graph_calls() -> None:
    inner, root = Graph(), torch.nn.Module()
    inner.output(inner.call_function(aten.rand.default, ([3],)))
    root.branch = GraphModule(root, inner)
    outer = Graph()
    branch = outer.get_attr("branch")
    called = outer.call_function(higher_order.cond, (True, branch, branch, ()))
    outer.output(called)
    root.outer = GraphModule(root, outer)
    top = Graph()
    node = top.call_function(higher_order.invoke_subgraph, (top.get_attr("outer"), "name"))
    top.owning_module = GraphModule(root, top)
    assert {one.target for one in inner_draws(node)} == {aten.rand.default}
    assert may_draw_inside(called) and not may_draw(called)
    assert calls_in_order(node.target) and not calls_in_order(higher_order.flex_attention)
