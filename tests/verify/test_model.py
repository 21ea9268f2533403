"""Verification finds nothing in what is right, names what a pass made wrong, and says what it cannot do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.fx import Graph

import tpfx
from tests.support.models import inputs, tiny
from tests.support.nets import Branches
from tpfx.ir.parallel_graph import ParallelGraph
from tpfx.plan import offline
from tpfx.verify.model import verify

aten = torch.ops.aten


class Net(nn.Module):
    """A convolution, a norm whose buffers change, dropout, and a graph break."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 8)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        torch._dynamo.graph_break()
        return self.down(self.drop(self.up(x).relu()))


@pytest.mark.parametrize("train", [False, True])
def test_a_net_with_buffers_dropout_and_a_graph_break(train: bool) -> None:
    model, x = Net(), torch.randn(4, 3, 9, 9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    outcome = verify(model, 2, (x,), train=train)
    assert outcome.right, outcome
    assert outcome.graphs == 2
    assert outcome.collectives > 0
    assert str(outcome).startswith("on 2 devices: 2 graphs, ") and str(outcome).endswith(": right")
    assert model.training and torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("name, devices", [("llama", 3), ("gpt2", 2)])
def test_language_models(name: str, devices: int) -> None:
    model = tiny(name, **{"llama": {"num_hidden_layers": 1}, "gpt2": {"n_layer": 1}}[name])
    outcome = verify(model, devices, inputs(model))
    assert outcome.right, outcome
    assert outcome.nodes > 50


@pytest.mark.slow
def test_an_encoder_and_a_decoder() -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 64}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))
    ids = torch.randint(3, 60, (2, 7))
    outcome = verify(model, 2, {"input_ids": ids, "decoder_input_ids": ids[:, :3]}, symbolic=False)
    assert outcome.right, outcome


class Layers(nn.Module):
    """Layers that share their graphs, since each breaks in two."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = _broken(layer, x)
        return x


def _broken(layer: nn.Module, x: Tensor) -> Tensor:
    x = layer(x).relu()
    torch._dynamo.graph_break()
    return x.sin()


def test_a_graph_that_is_run_for_several_layers() -> None:
    x = torch.randn(3, 64)
    one, three = verify(Layers(1), 2, (x,)), verify(Layers(3), 2, (x,))
    assert one.right and three.right
    assert (three.graphs, three.nodes, three.collectives) == (one.graphs, 3 * one.nodes, 3 * one.collectives)


class Cache(nn.Module):
    """Writes into an input, and uses what it wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.out = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor, cache: Tensor) -> Tensor:
        cache[:, 1] = self.proj(x)
        cache.mul_(0.5)
        return self.out(cache.sum(1).relu())


def test_inputs_that_are_written_to() -> None:
    cache = torch.ones(3, 4, 64)
    outcome = verify(Cache(), 2, (torch.randn(3, 32), cache))
    assert outcome.right, outcome
    assert torch.equal(cache, torch.ones(3, 4, 64))


# What a pass makes wrong, and what cannot be verified.


def test_a_pass_that_changes_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = offline.parallelize

    def wrong(graph: Graph, *args: Any) -> ParallelGraph:
        (node,) = graph.find_nodes(op="call_function", target=aten.sin.default)
        node.target = aten.tanh.default
        return plan(graph, *args)

    monkeypatch.setattr(offline, "parallelize", wrong)
    outcome = verify(Branches(), 2, (torch.randn(3, 64),))
    assert [(one.kind, one.node) for one in outcome.findings] == [("rewrite", "tanh")]
    assert not outcome.right


def test_what_cannot_be_verified() -> None:
    x = torch.randn(3, 64)
    with pytest.raises(tpfx.TpfxError, match="at least 1"):
        verify(Branches(), 0, (x,))
    with pytest.raises(tpfx.TpfxError, match=r"up.weight is on meta"):
        verify(Branches().to("meta"), 2, (x,))
    with pytest.raises(tpfx.TpfxError, match=r"is split already"):
        verify(tpfx.compile(Branches(), 2, example_inputs=(x,)), 2, (x,))
    with pytest.raises(tpfx.TpfxError, match="no inputs of its own"):
        verify(Branches(), 2)
    with pytest.raises(tpfx.TpfxError, match="Branches"):
        verify(Branches(), 2, (torch.randn(3, 63),))
