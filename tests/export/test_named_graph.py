"""The parallel graph for networkx: plain names, numbers and words."""

from __future__ import annotations

import networkx
import pytest
import torch
from torch import nn

import tpfx
from tests.support.nets import Mlp
from tpfx.errors import InputError
from tpfx.export.named_graph import graphml

X = torch.zeros(8, 64)


def test_a_model_that_is_not_compiled_is_planned() -> None:
    graph = tpfx.graph(Mlp(), 2, (X,))
    assert {
        name: (known["op"], known["layout"], known["collective"]) for name, known in graph.nodes(data=True)
    } == {
        "up.weight": ("input", "f32[256/2, 64]", ""),
        "s0": ("input", "", ""),
        "x": ("input", "f32[s0, 64]", ""),
        "down.weight": ("input", "f32[64, 256/2]", ""),
        "up": ("linear", "f32[s0, 256/2]", ""),
        "relu": ("relu", "f32[s0, 256/2]", ""),
        "down": ("linear", "f32[s0, 64]+", ""),
        "down.sum": ("all_reduce", "f32[s0, 64]", "all_reduce"),
        "results": ("results", "", ""),
    }
    assert networkx.dag_longest_path(graph, weight="seconds")[-2:] == ["down.sum", "results"]
    assert graph.nodes["down.sum"]["seconds"] > 0 and graph.nodes["up"]["module"] == "up"


def test_of_a_compiled_model_it_is_the_newest_graph() -> None:
    model = tpfx.compile(nn.Linear(64, 256, bias=False), 2)
    with pytest.raises(InputError, match="no graph of Linear has been captured yet: call the model once"):
        tpfx.graph(model)
    with torch.no_grad():
        model(X)
    graph = tpfx.graph(model)
    ((operand, _, found),) = graph.in_edges("results", data=True)
    assert graph.nodes[operand]["op"] == "linear" and found["collective"] == "gather"
    with pytest.raises(InputError, match="compiled already: leave out devices"):
        tpfx.graph(model, 2)


def test_what_has_no_graph_is_refused_with_what_to_pass() -> None:
    plan = tpfx.plan(Mlp(), 3, (X,))
    with pytest.raises(InputError, match=r"no edges between its ops; pass the model: tpfx.graph\(model, 3\)"):
        tpfx.graph(plan)
    with pytest.raises(InputError, match=r"Mlp is not compiled: say for how many devices, tpfx.graph"):
        tpfx.graph(Mlp())


def test_a_training_step_has_a_backward_part_and_graphml_can_be_read_again() -> None:
    graph = tpfx.graph(Mlp(), 2, (X,), phase="train")
    assert {known["phase"] for _, known in graph.nodes(data=True)} == {"forward", "backward"}
    again = networkx.parse_graphml(graphml(graph))
    assert dict(again.nodes(data=True)) == dict(graph.nodes(data=True))
    assert set(again.edges) == set(graph.edges)
