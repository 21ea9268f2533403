"""A rank's graph, written and read again: the same nodes, constants and graphs inside of it."""

from __future__ import annotations

import operator
import pickle

import pytest
import torch
from torch.fx import Graph, GraphModule

from tpfx.errors import ModelError
from tpfx.kernels.slices import take
from tpfx.workers import graph_text

aten = torch.ops.aten


def module() -> GraphModule:
    """Ops by name, a function, a list of nodes, a constant, and a branch."""
    inner = Graph()
    value = inner.placeholder("x")
    inner.output((inner.call_function(aten.relu.default, (value,)),))
    graph = Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    constant, branch = graph.get_attr("constant"), graph.get_attr("branch")
    joined = graph.call_function(aten.cat.default, ([x, y, constant], 0))
    own = graph.call_function(take, (joined, ((0, (((0, 3),), ((3, 6),))),), 1))
    size = graph.call_function(aten.sym_size.int, (own, 0))
    chosen = graph.call_function(torch.ops.higher_order.cond, (True, branch, branch, [own]))
    first = graph.call_function(operator.getitem, (chosen, 0))
    empty = graph.call_function(aten.full.default, ([size], 1.5), {"dtype": torch.float64})
    graph.output((first, empty))
    root = {"constant": torch.tensor([-1.0]), "branch": GraphModule({}, inner)}
    return GraphModule(root, graph)


def test_what_is_read_is_what_was_written() -> None:
    made, given = module(), (torch.ones(2), -torch.ones(3))
    read = graph_text.loads(graph_text.dumps(made))
    assert str(read.graph) == str(made.graph)
    for mine, theirs in zip(read(*given), made(*given), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_the_module_that_defines_an_op_is_imported() -> None:
    pytest.importorskip("transformers.integrations.moe")
    graph = Graph()
    op = torch.ops.transformers.grouped_mm_fallback.default
    graph.output((graph.call_function(op, tuple(graph.placeholder(name) for name in "abc")),))
    text = graph_text.dumps(GraphModule({}, graph))
    assert b"transformers.integrations.moe" in text and str(graph_text.loads(text).graph) == str(graph)


def of_the_main_program(x: torch.Tensor) -> torch.Tensor:
    return x


of_the_main_program.__module__ = "__main__"


def test_what_another_process_cannot_find_is_refused() -> None:
    for function in (of_the_main_program, lambda x: x):
        graph = Graph()
        graph.output((graph.call_function(function, (graph.placeholder("x"),)),))
        with pytest.raises(ModelError, match="leave out processes=True"):
            graph_text.dumps(GraphModule({}, graph))


def test_an_op_that_the_other_process_lacks_is_named() -> None:
    text = pickle.dumps(_Missing())
    with pytest.raises(ModelError, match=r"does not have .*nowhere.*leave out processes=True"):
        graph_text.loads(text)


class _Missing:
    def __reduce__(self) -> object:
        return graph_text._op_named, ("aten::nowhere.default", None)
