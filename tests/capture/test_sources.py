"""What the inputs of graphs are, as the weights of a model tell and as a graph uses them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule

from tpfx.capture.sources import input_sources, settle_sources, weight_sources
from tpfx.errors import TpfxError
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
