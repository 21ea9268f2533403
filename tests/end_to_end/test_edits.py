"""A compiled model can be changed as the unsharded one can: what is new is split, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.models import tiny
from tests.support.nets import Net
from tests.support.sharded import whole

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def _freeze(model: Any) -> None:
    model.up.requires_grad_(False)


def _thaw(model: Any) -> None:
    model.requires_grad_()


def _replace_a_layer(model: Any) -> None:
    torch.manual_seed(1)
    model.up = nn.Linear(8, 24)


def _widen(model: Any) -> None:
    torch.manual_seed(1)
    model.up, model.norm, model.down = nn.Linear(8, 40), nn.LayerNorm(40), nn.Linear(40, 8)


def _put_layers_between(model: Any) -> None:
    torch.manual_seed(1)
    model.norm = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24))


def _exchange(model: Any) -> None:
    model.up.weight, model.down.weight = (
        nn.Parameter(weight.detach().t().contiguous()) for weight in (model.down.weight, model.up.weight)
    )


def _take_a_bias_out(model: Any) -> None:
    model.up.bias = None


def _assign_other_data(model: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    for name, shape in (("up.weight", (30, 8)), ("up.bias", (30,)), ("down.weight", (8, 30))):
        model.get_parameter(name).data = torch.randn(shape, generator=generator)
    model.norm = nn.LayerNorm(30)


def _load_other_dtypes(model: Any) -> None:
    state = {name: whole(value).double() for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    model.float()


def _make_some_of_the_class_of_the_old(model: Any) -> None:
    """As accelerate's `set_module_tensor_to_device` does, by which libraries put values into a model."""
    generator = torch.Generator().manual_seed(3)
    for layer in (model.up, model.down):
        value = torch.randn(layer.weight.shape, generator=generator)
        layer._parameters["weight"] = type(layer.weight)(value, requires_grad=True)
        layer.bias = type(layer.bias)(layer.bias.data)


EDITS = (
    (_freeze,),
    (_freeze, _thaw),
    (_replace_a_layer, _replace_a_layer),
    (_widen, _freeze),
    (_put_layers_between,),
    (_exchange, _exchange),
    (_take_a_bias_out,),
    (_assign_other_data,),
    (_load_other_dtypes,),
    (_make_some_of_the_class_of_the_old,),
)


@pytest.mark.parametrize("edits", EDITS, ids=lambda edits: edits[0].__name__)
def test_a_changed_model_computes_what_the_unsharded_one_does(
    edits: tuple[Callable[[Any], None], ...],
) -> None:
    model, reference = tpfx.compile(Net(), ["cpu"] * 3), Net()
    model(X).sum().backward()
    for edit in edits:
        results = []
        for each in (model, reference):
            edit(each)
            each.zero_grad()
            result = each(X)
            result.square().mean().backward()
            gradients = {name: weight.grad for name, weight in each.named_parameters()}
            results.append(
                (whole(result), {n: None if g is None else whole(g) for n, g in gradients.items()})
            )
        torch.testing.assert_close(*results)
    assert all(isinstance(weight, tpfx.ShardedTensor) for weight in model.parameters())
    assert not tpfx.report(model).whole_calls


def test_a_state_dict_that_is_assigned_brings_its_dtypes() -> None:
    model = tpfx.compile(Net(), ["cpu", "cpu"])
    model(X)
    model.load_state_dict({name: value.double() for name, value in Net(1).state_dict().items()}, assign=True)
    assert all(
        weight.dtype == torch.float64 and weight.placement is not None for weight in model.parameters()
    )
    torch.testing.assert_close(model(X.double()), Net(1).double()(X.double()))


def test_what_is_new_is_split() -> None:
    model = tpfx.compile(Net(), ["cpu"] * 2)
    with torch.no_grad():
        model(X)
        _widen(model)
        model(X)
    report = tpfx.report(model)
    assert max(report.bytes_per_device) < 0.7 * report.total_bytes
    assert model.up.weight.placement


def test_freezing_in_turns_captures_each_state_once() -> None:
    model = tpfx.compile(Net(), ["cpu", "cpu"])
    for _ in range(3):
        for edit in (_freeze, _thaw):
            edit(model)
            model(X).sum().backward()
    assert tpfx.report(model).graphs == 2


def test_an_optimizer_made_for_new_layers_steps_them() -> None:
    model, reference = tpfx.compile(Net(), ["cpu", "cpu"]), Net()
    for each in (model, reference):
        each(X)
        _replace_a_layer(each)
        optimizer = torch.optim.AdamW(each.parameters(), lr=0.1)
        for _ in range(2):
            each(X).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(tpfx.full_state_dict(model), dict(reference.state_dict()))


@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.slow), True])
def test_token_embeddings_can_be_resized(tied: bool) -> None:
    model, reference = (tiny("llama", num_hidden_layers=1, tie_word_embeddings=tied) for _ in range(2))
    ids = torch.arange(6).view(1, 6)
    tpfx.compile(model, ["cpu", "cpu"])
    size = model.config.vocab_size
    with torch.no_grad():
        for each in (model, reference):
            each.resize_token_embeddings(size + 7, mean_resizing=False)
        got, want = model(ids).logits, reference(ids).logits
    torch.testing.assert_close(got[..., :size], want[..., :size])
    assert got.shape == want.shape and (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    report = tpfx.report(model)
    assert max(report.bytes_per_device) < 0.6 * report.total_bytes
