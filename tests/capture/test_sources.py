"""What the inputs of graphs are, as the weights of a model tell and as a graph uses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule

from tests.support.quantized import Doubled, Int8, quantized
from tpfx.capture.sources import input_sources, on_leaves, settle_sources, weight_sources
from tpfx.errors import ModelError, TpfxError
from tpfx.ir.annotations import Source

aten = torch.ops.aten


def graph_of(*names: str, write: str | None = None) -> GraphModule:
    """A graph with these inputs that adds 1 to one of them in place."""
    graph = Graph()
    inputs = {name: graph.placeholder(name) for name in names}
    if write is not None:
        graph.call_function(aten.add_.Tensor, (inputs[write], 1))
    graph.output((inputs[names[0]],))
    return GraphModule(nn.Module(), graph)


def test_weights_go_by_their_ids_and_tied_ones_have_their_first_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    found = weight_sources(model)
    assert found[id(model[1].weight)] == Source("parameter", "0.weight")
    assert found[id(model[2].running_mean)] == Source("buffer", "2.running_mean")
    assert len(found) == 1 + 2 + 3  # the norm: weight and bias; mean, variance and a count
    sources = input_sources(graph_of("l_x", "l_w"), [torch.zeros(4), model[0].weight], found)
    assert sources == [Source("input", "l_x"), Source("parameter", "0.weight")]


def test_what_a_graph_writes_into_is_state_but_for_weights() -> None:
    given = [Source("input", "x"), Source("input", "cache"), Source("buffer", "mean")]
    x, cache, mean = settle_sources(graph_of("x", "cache", "mean", write="cache"), given)
    assert (x, cache, mean) == (given[0], Source("state", "cache", mutated=True), given[2])
    _, cache, mean = settle_sources(graph_of("x", "cache", "mean", write="mean"), given)
    assert (cache, mean) == (given[1], Source("buffer", "mean", mutated=True))


def test_gradients_of_results_come_after_the_inputs() -> None:
    settled = settle_sources(graph_of("primals_1", "tangents_1"), [Source("input", "x")])
    assert settled == [Source("input", "x"), Source("tangent", "tangents_1")]


def test_inputs_that_the_model_did_not_give_are_refused() -> None:
    with pytest.raises(TpfxError, match="takes 2 inputs where the model gave 1: it writes to inputs"):
        settle_sources(graph_of("x", "y"), [Source("input", "x")])


def test_inputs_that_are_made_of_others_are_taken_apart_and_put_together_before_their_use() -> None:
    model = quantized(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)), Doubled)
    seen: list[tuple[GraphModule, list[torch.Tensor]]] = []

    def compiler(module: GraphModule, values: Sequence[Any]) -> Any:
        seen.append((module, list(values)))
        return module

    compiled = torch.compile(model, backend=lambda module, values: on_leaves(module, values, compiler))
    x = torch.randn(2, 4)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
    ((module, values),) = seen
    ops = [(node.op, str(node.target)) for node in module.graph.nodes if node.op != "placeholder"]
    assert [op for op, _ in ops] == ["call_module", "call_function", "call_module", "call_function", "output"]
    assert ops[0] == ops[2], "alike weights are put together by one module"
    assert len(module.graph.find_nodes(op="placeholder")) == len(values) == 7
    assert all(type(value) is torch.Tensor for value in values)
    with torch.no_grad():
        model[0].weight.factor.mul_(2)
        assert torch.equal(compiled(x), model(x)), "the tensors inside are looked up at each call"


def test_a_gradient_of_what_is_made_of_others_is_refused() -> None:
    weight = Int8.of(torch.randn(4, 4)).requires_grad_()

    def backend(module: GraphModule, values: Sequence[Any]) -> Any:
        with pytest.raises(ModelError, match=r"a gradient of l_weight_ is wanted, a Int8.*requires_grad_"):
            on_leaves(module, values, lambda module, _: module)
        return module

    torch.compile(lambda x, weight: nn.functional.linear(x, weight), backend=backend)(
        torch.randn(2, 4), weight
    )
