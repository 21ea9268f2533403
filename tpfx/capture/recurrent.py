"""Recurrent nets layer by layer: torch's own way of tracing them leaves out dropout, and unrolls what trains.

torch.lstm(x, states, weights, …)   becomes   one layer, dropout, the next layer; on CPU by oneDNN
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.fx import Graph, GraphModule

from ..torch_internals.inductor import has_rnn_layer, rnn_layer_for_training

aten = torch.ops.aten

_TRAIN = 18  # which argument of a layer's backward says that it trains

# The states of a net: of an LSTM two tensors, [layers and directions, batch, size] each.
States = Sequence[torch.Tensor]

# One layer: (x, states, weights, whether it trains) -> (its outputs, its last states).
Layer = Callable[[torch.Tensor, States, Sequence[torch.Tensor], bool], tuple[torch.Tensor, States]]


def take_apart(module: GraphModule) -> None:
    """Have recurrent nets in one of Dynamo's graphs traced layer by layer."""
    changed = False
    for node in module.graph.nodes:
        ours = _OURS.get(node.target)
        if ours is not None and not isinstance(node.args[3], (list, tuple)):  # which a packed sequence has
            node.target, changed = ours, True
    if changed:
        module.recompile()


def keep_for_backward(joint: Graph) -> None:
    """Have oneDNN's layers keep what their backward reads: they are traced as for inference."""
    for node in joint.find_nodes(op="call_function", target=aten.mkldnn_rnn_layer_backward.default):
        node.update_arg(_TRAIN, True)
        node.args[-1].args[0].target = rnn_layer_for_training()  # whose last result it reads


def _layers(
    op: Callable[..., Any],
    x: torch.Tensor,
    states: torch.Tensor | States,
    weights: Sequence[torch.Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, ...]:
    """What `op` computes of all layers: the outputs, then the last states."""
    given = [states] if isinstance(states, torch.Tensor) else list(states)
    directions, last = 2 if bidirectional else 1, []
    one = partial(_onednn if _by_onednn(op, x, given, weights) else _single, op, has_biases, bidirectional)
    size = len(weights) // layers
    x = x.transpose(0, 1) if batch_first else x
    for at in range(layers):
        own = [state[at * directions : (at + 1) * directions] for state in given]
        x, after = one(x, own, weights[at * size : (at + 1) * size], train)
        last.append(after)
        if dropout and train and at < layers - 1:
            x = torch.dropout(x, dropout, True)
    x = x.transpose(0, 1) if batch_first else x
    return x, *(torch.cat(each) for each in zip(*last, strict=True))


def _by_onednn(
    op: Callable[..., Any], x: torch.Tensor, states: States, weights: Sequence[torch.Tensor]
) -> bool:
    """Whether oneDNN has such a layer: an LSTM's on CPU, without projections."""
    tensors = [x, *states, *weights]
    known = {torch.float32, torch.bfloat16}
    plain = all(one.device.type == "cpu" and one.dtype in known for one in tensors)
    return op is torch.lstm and plain and states[0].shape[2] == states[1].shape[2] and has_rnn_layer()


def _single(
    op: Callable[..., Any],
    has_biases: bool,
    bidirectional: bool,
    x: torch.Tensor,
    states: States,
    weights: Sequence[torch.Tensor],
    train: bool,
) -> tuple[torch.Tensor, States]:
    """A layer as torch traces it: unrolled."""
    given = states if op is torch.lstm else states[0]
    outputs, *last = op(x, given, list(weights), has_biases, 1, 0.0, train, bidirectional, False)
    return outputs, last


def _onednn(
    _: Callable[..., Any],
    has_biases: bool,
    bidirectional: bool,
    x: torch.Tensor,
    states: States,
    weights: Sequence[torch.Tensor],
    train: bool,
) -> tuple[torch.Tensor, States]:
    """An LSTM's layer, each direction one op."""
    size, made = len(weights) // (2 if bidirectional else 1), []
    for at in range(2 if bidirectional else 1):
        own = list(weights[at * size : (at + 1) * size])
        if not has_biases:
            own += [torch.zeros_like(weight) for weight in own]
        given = [state[at].contiguous() for state in states]
        sizes = given[0].shape[1], 1, has_biases, False, False, False
        made.append(aten.mkldnn_rnn_layer.default(x.contiguous(), *own, *given, bool(at), [], 2, *sizes))
    outputs = torch.cat([one[0] for one in made], -1) if bidirectional else made[0][0]
    last = [torch.stack([one[1 + at] for one in made]) for at in range(2)]
    return outputs, last


def _lstm(*args: Any) -> tuple[torch.Tensor, ...]:
    return _layers(torch.lstm, *args)


def _gru(*args: Any) -> tuple[torch.Tensor, ...]:
    return _layers(torch.gru, *args)


def _rnn_tanh(*args: Any) -> tuple[torch.Tensor, ...]:
    return _layers(torch.rnn_tanh, *args)


def _rnn_relu(*args: Any) -> tuple[torch.Tensor, ...]:
    return _layers(torch.rnn_relu, *args)


_OURS: dict[Any, Callable[..., Any]] = {
    torch.lstm: _lstm,
    torch.gru: _gru,
    torch.rnn_tanh: _rnn_tanh,
    torch.rnn_relu: _rnn_relu,
}
