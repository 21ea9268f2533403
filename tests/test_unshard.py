"""A compiled model is made plain again: its weights, gradients, optimizers' states, methods; threads end."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.nets import Net, TiedNet
from tpfx import ShardedTensor

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(10).view(2, 5)


def _step(model: nn.Module, optimizer: Any) -> None:
    model(X).square().mean().backward()
    optimizer.step()


def _threads() -> int:
    return sum(one.name.startswith("tpfx") and one.is_alive() for one in threading.enumerate())


@pytest.mark.parametrize("door", ["compile", "backend"])
def test_training_goes_on_with_the_plain_model(door: str) -> None:
    model, reference = Net(), Net()
    call: Any = tpfx.compile(model, ["cpu"] * 3) if door == "compile" else None
    if call is None:
        call = torch.compile(model, backend="tpfx", options={"devices": ["cpu"] * 3})
    optimizers = [torch.optim.AdamW(each.parameters(), lr=0.1) for each in (model, reference)]
    for each, optimizer in zip((call, reference), optimizers, strict=True):
        _step(each, optimizer)
    assert tpfx.unshard(call) is model
    assert not any(isinstance(weight, ShardedTensor) for weight in model.parameters())
    gradients = [[weight.grad for weight in each.parameters()] for each in (model, reference)]
    torch.testing.assert_close(*gradients)
    for each, optimizer in zip((model, reference), optimizers, strict=True):
        _step(each, optimizer)
    torch.testing.assert_close(dict(model.state_dict()), dict(reference.state_dict()))
    torch.testing.assert_close(*(optimizer.state_dict() for optimizer in optimizers))


def test_the_model_is_what_it_was() -> None:
    model, reference, before = TiedNet(), TiedNet(), _threads()
    reference.load_state_dict(model.state_dict())
    attributes = [sorted(vars(module)) for module in model.modules()]
    tpfx.compile(model, ["cpu", "cpu"])
    with torch.no_grad():
        model(IDS)
    assert _threads() == before + 2
    assert tpfx.unshard(model) is model and _threads() == before
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert model.head.weight is model.embed.weight and type(model.head.weight) is nn.Parameter
    assert type(model.scale) is torch.Tensor
    assert all(not module._load_state_dict_pre_hooks for module in model.modules())
    torch.testing.assert_close(model(IDS), reference(IDS))
    twin = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(twin(IDS), reference(IDS))
    with pytest.raises(tpfx.ModelError, match="is not compiled"):
        tpfx.unshard(model)
    tpfx.compile(model, ["cpu"] * 3)
    torch.testing.assert_close(model(IDS), reference(IDS))


def test_a_copy_stays_split_and_runs() -> None:
    model = tpfx.compile(Net(), ["cpu", "cpu"])
    want = model(X)
    twin = copy.deepcopy(model)
    tpfx.unshard(model)
    assert isinstance(twin.up.weight, ShardedTensor)
    torch.testing.assert_close(twin(X), want)


def test_parts_are_made_plain_by_the_model_that_has_them_and_not_by_parts_of_theirs() -> None:
    model = nn.ModuleDict({"one": Net(), "other": Net(1)})
    tpfx.compile(model["one"], ["cpu", "cpu"])
    tpfx.compile(model["other"], ["cpu"] * 3)
    want = model["other"](X)
    with pytest.raises(tpfx.ModelError, match=r"a part of a compiled Net; call tpfx\.unshard on that"):
        tpfx.unshard(model["one"].up)
    assert isinstance(model["one"].up.weight, ShardedTensor)
    tpfx.unshard(model)
    assert not any(isinstance(weight, ShardedTensor) for weight in model.parameters())
    torch.testing.assert_close(model["other"](X), want)


def test_a_forward_that_others_have_wrapped_is_the_models_own_again() -> None:
    model, reference = tpfx.compile(Net(), ["cpu", "cpu"]), Net()
    inside = model.forward
    model.forward = lambda x: inside(x) * 2
    tpfx.unshard(model)
    torch.testing.assert_close(model(X), reference(X) * 2)


def test_a_forward_of_the_models_own_is_put_back() -> None:
    model = Net()
    own = model.forward = lambda x: Net.forward(model, x) * 2
    want = model(X)
    tpfx.compile(model, ["cpu", "cpu"])
    torch.testing.assert_close(model(X), want)
    assert tpfx.unshard(model).forward is own


def test_what_cannot_be_pickled_says_what_can() -> None:
    model = nn.Sequential(tpfx.compile(Net(), ["cpu", "cpu"]))
    with pytest.raises(tpfx.ModelError, match=r"tpfx\.full_state_dict\(model\), or tpfx\.unshard\(model\)"):
        torch.save(model, io.BytesIO())


def test_methods_are_the_models_own_again() -> None:
    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Linear(8, 24), nn.Linear(24, 8)

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(x)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(self.encode(x))

    model = Coder()
    want = model.encode(X)
    tpfx.compile(model, ["cpu", "cpu"])
    torch.testing.assert_close(model.encode(X), want)
    tpfx.unshard(model)
    torch.testing.assert_close(model.encode(X), want, rtol=0, atol=0)
    assert "encode" not in vars(model) and not _left_in(model)


def _left_in(model: nn.Module) -> list[str]:
    return [name for name in vars(model) if name.startswith("_tpfx")]
