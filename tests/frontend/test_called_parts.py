"""Submodules of a compiled model that are called by themselves: compiled at their first call, with hooks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, T5Config

import tpfx

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


class Coder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(40, 8)
        self.encoder = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 32))
        self.decoder = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.encoder(self.embed(ids))
        torch._dynamo.graph_break()
        return self.decoder(hidden)  # type: ignore[no-any-return]


def split(devices: int = 2) -> Any:
    return tpfx.compile(Coder(), ["cpu"] * devices)


@pytest.mark.parametrize("devices", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_parts_have_graphs_of_their_own_and_the_same_weights(devices: int) -> None:
    plain, model, ids = Coder(), split(devices), torch.arange(6).view(2, 3)
    torch.testing.assert_close(model.encoder(input=X), plain.encoder(input=X))
    report = tpfx.report(model)
    assert report.graphs == 1 and max(report.bytes_per_device) * devices < 1.2 * report.total_bytes
    torch.testing.assert_close(model(ids), plain(ids))
    assert tpfx.report(model).graphs == 3  # of forward, with a break in its midst
    torch.testing.assert_close(model.embed(ids), plain.embed(ids))
    torch.testing.assert_close(
        model.decoder[0](X[:, :1].expand(5, 32)), plain.decoder[0](X[:, :1].expand(5, 32))
    )
    report = tpfx.report(model)
    assert report.graphs == 5 and report.whole_calls == 0
    assert max(report.bytes_per_device) * devices < 1.2 * report.total_bytes


def test_gradients_of_a_part() -> None:
    plain, model = Coder(), split()
    for each in (plain, model):
        each.encoder(X).square().sum().backward()
    torch.testing.assert_close(model.encoder[0].weight.grad.full(), plain.encoder[0].weight.grad)
    assert model.decoder[0].weight.grad is None


def test_a_parts_hooks_run_whenever_they_are_registered() -> None:
    plain, model = Coder(), split()
    for at in range(2):
        torch.testing.assert_close(model.encoder(X), plain.encoder(X))
        for each in (plain, model):
            (each.encoder, each.encoder[2])[at].register_forward_hook(
                lambda module, given, result: result * 3
            )
    torch.testing.assert_close(model.encoder(X), plain.encoder(X))


def test_a_parts_forward_that_is_replaced_is_used() -> None:
    model = split()
    before = model.encoder(X)
    model.encoder.forward = lambda input: nn.Sequential.forward(model.encoder, input) + 1
    torch.testing.assert_close(model.encoder(X), before + 1)


def test_what_a_part_cannot_take_is_said_in_its_words() -> None:
    with pytest.raises(tpfx.InputError, match=r"Linear cannot be called with input float32\[5, 7\]"):
        split().encoder[0](X[:, :7])


def test_copies_and_plain_models_have_parts_of_their_own() -> None:
    plain, model, ids = Coder(), split(), torch.arange(4)
    model.encoder(X)
    copied = copy.deepcopy(model)
    copied(ids)
    with torch.no_grad():
        copied.encoder[2].bias.add_(1)
    torch.testing.assert_close(copied.encoder(X), plain.encoder(X) + 1)
    torch.testing.assert_close(tpfx.unshard(model).encoder(X), plain.encoder(X))
    assert [sorted(vars(module)) for module in model.modules()] == [
        sorted(vars(module)) for module in plain.modules()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_a_generation_whose_encoder_is_called_by_itself(devices: int) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 64}
    tokens = {"decoder_start_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
    plain = AutoModelForSeq2SeqLM.from_config(T5Config(**sizes, **tokens)).eval()
    model, ids = tpfx.compile(copy.deepcopy(plain), ["cpu"] * devices), torch.randint(2, 64, (2, 7))
    given = {"max_new_tokens": 6, "do_sample": False, "min_new_tokens": 6}
    assert model.generate(ids, **given).tolist() == plain.generate(ids, **given).tolist()
    report = tpfx.report(model)
    assert report.whole_calls == 0 and max(report.bytes_per_device) * devices < 1.4 * report.total_bytes
    got, want = (one.get_encoder()(ids).last_hidden_state for one in (model, plain))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


class Asking(nn.Module):
    """Its loop asks for values, so that Dynamo leaves it out, and with it calls of torch's own modules."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        steps = (nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8)) for _ in range(2))
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            if x.sum() != 0:
                x = step(x) + x
        return x


def test_parts_that_uncaptured_code_calls_have_graphs_of_their_own() -> None:
    plain, model = Asking(), tpfx.compile(Asking(), ["cpu"] * 2, example_inputs=(X,))
    assert tpfx.report(model).graphs == 0  # nothing has run
    for _ in range(2):
        torch.testing.assert_close(model(X), plain(X))
    report = tpfx.report(model)
    assert report.graphs == 2 and not report.whole_calls
    assert all(layer.weight.placement.dims for step in model.steps for layer in step[::2])
    with pytest.raises(tpfx.InputError, match=r"Asking cannot be called with x float32\[5, 7\]"):
        model(X[:, :7])
