"""fx graphs and ops."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict

import torch

from tpfx.torch_internals import fx


def test_graphs_keep_nodes_that_they_no_longer_have_until_told_to_forget_them() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    gone = graph.call_function(torch.neg, (x,))
    graph.output(graph.call_function(torch.neg, (x,)))
    graph.erase_node(gone)
    kept = weakref.ref(gone)
    del gone
    gc.collect()
    assert kept() is not None  # if not, `forget_erased` is no longer needed
    fx.forget_erased(graph)
    gc.collect()
    assert kept() is None
    graph.lint()
    assert [node.name for node in graph.nodes] == ["x", "neg_1", "output"]
    assert graph.call_function(torch.neg, (x,)).name == "neg_2"


def test_graph_modules_write_their_code_when_it_is_asked_for() -> None:
    graph = torch.fx.Graph()
    graph.output(graph.call_function(torch.neg, (graph.placeholder("x"),)))
    module, other = (fx.LazyGraphModule({}, graph, class_name="Lazy") for _ in range(2))
    assert "_code" not in vars(module) and type(module).__name__ == "Lazy"
    assert fx.code_of(module)(torch.ones(())) == other(torch.ones(())) == -1
    assert module.forward.__func__ is type(module).forward and "neg" in vars(module)["_code"]
    assert fx.code_of(torch.fx.GraphModule({}, graph))(torch.ones(())) == -1


def test_an_op_of_a_library_stands_for_one_overload() -> None:
    name = "tpfx_test::of_one"
    made = torch.library.custom_op(name, lambda x: x + 1, mutates_args=(), schema="(Tensor x) -> Tensor")
    overload = torch.ops.tpfx_test.of_one.default
    for op in (made, torch.ops.tpfx_test.of_one, overload):
        assert fx.overload_of(op) is overload
    for op in (torch.ops.aten.add, torch.add, None):
        assert fx.overload_of(op) is None


def test_containers_are_walked() -> None:
    nest = {"a": [torch.ones(1), 2], "b": (3,)}
    assert len(fx.tree_leaves(nest)) == 3
    assert fx.tree_map(lambda one: int(one) + 1, nest) == {"a": [2, 3], "b": (4,)}
    assert fx.tree_map_only(torch.Tensor, lambda one: None, nest) == {"a": [None, 2], "b": (3,)}


def test_a_leaf_is_what_the_walk_stops_at() -> None:
    class Box(list):  # type: ignore[type-arg]
        pass

    for value in (torch.ones(1), None, 3, Box([1]), object(), [1], (1,), {"a": 1}, OrderedDict(a=1)):
        assert fx.is_leaf(value) == (fx.tree_leaves(value) == [value]), value
