"""Recurrent nets layer by layer: what they compute, dropout too, is what torch's own ops compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule

from tpfx.capture.recurrent import take_apart

KINDS = [nn.LSTM, nn.GRU, lambda *sizes, **settings: nn.RNN(*sizes, nonlinearity="relu", **settings), nn.RNN]
OPS: dict[str, Any] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}
SETTINGS: list[dict[str, Any]] = [
    {"num_layers": 3, "dropout": 0.4, "bidirectional": True},
    {"bias": False, "batch_first": True},
]


def traced(net: nn.RNNBase, op: Any, states: int) -> GraphModule:
    """The call of a net's op as a graph of Dynamo has it: the input, the states, then the weights."""
    graph = Graph()
    x, *rest = [graph.placeholder(f"x{at}") for at in range(1 + states + len(net._flat_weights))]
    given = tuple(rest[:states]) if states == 2 else rest[0]
    settings = net.bias, net.num_layers, net.dropout, net.training, net.bidirectional, net.batch_first
    graph.output(graph.call_function(op, (x, given, rest[states:], *settings)))
    return GraphModule(nn.Module(), graph)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_those_of_torch(kind: Any, settings: dict[str, Any]) -> None:
    net, x = kind(4, 6, **settings), torch.randn(3, 2, 4)
    op = OPS[net.mode]
    batch = x.shape[0 if net.batch_first else 1]
    state = torch.randn(net.num_layers * (2 if net.bidirectional else 1), batch, 6)
    states = [state, state + 1] if net.mode == "LSTM" else [state]
    module, plain = (traced(net, op, len(states)) for _ in range(2))
    take_apart(module)
    assert not module.graph.find_nodes(op="call_function", target=op)
    results = []
    for one in (plain, module):
        torch.manual_seed(0)
        results.append(one(x, *states, *net._flat_weights))
    torch.testing.assert_close(list(results[1]), list(results[0]))


def test_a_packed_sequence_is_left_to_torch() -> None:
    graph = Graph()
    x, sizes, state, *weights = [graph.placeholder(f"x{at}") for at in range(7)]
    graph.output(graph.call_function(torch.gru, (x, sizes, state, weights, True, 1, 0.0, True, False)))
    module = GraphModule(nn.Module(), graph)
    take_apart(module)
    assert len(module.graph.find_nodes(op="call_function", target=torch.gru)) == 1
