"""Steps of one token call what was compiled for the step before, unless anything has changed that matters."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.sharded import whole
from tpfx.torch_internals.dynamo_cache import NOT_DIRECT, DirectCalls

SCALE = 2.0


class Settings:
    """What a config is."""

    def __init__(self) -> None:
        self.square = False


class Halving(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Half of what a Linear gives."""
        return super().forward(x) / 2


def bent(x: torch.Tensor) -> torch.Tensor:
    """A function of a module, which can be replaced there."""
    return x.tanh()


class Step(nn.Module):
    """Everything that a forward may go by."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.inner, self.out = nn.Embedding(16, 8), nn.Linear(8, 12), nn.Linear(12, 16)
        self.register_buffer("shift", torch.randn(16))
        self.config, self.factors, self.power = Settings(), [1.5], 1.0

    def forward(self, ids: torch.Tensor, extra: Any = None, shout: bool = False) -> Any:
        """Logits of each row."""
        x = self.inner(self.embed(ids))
        x = bent(x) if not self.config.square else x * x
        for factor in self.factors:
            x = x * factor
        if self.training:
            x = x + 1
        x = self.out(x) * SCALE * self.power + self.shift
        if extra is not None:
            x = x + (extra["by"] if isinstance(extra, dict) else extra[0])
        return {"logits": -x if shout else x, "grad": torch.is_grad_enabled()}


def _config(model: Any) -> None:
    model.config.square = True


def _other_config(model: Any) -> None:
    model.config = Settings()
    model.config.square = True


def _number(model: Any) -> None:
    model.power = 3.0


def _number_past_the_module(model: Any) -> None:
    vars(model)["power"] = 3.0


def _list(model: Any) -> None:
    model.factors.append(0.5)


def _train(model: Any) -> None:
    model.train()


def _part(model: Any) -> None:
    torch.manual_seed(1)
    model.inner = nn.Linear(8, 12)


def _part_past_the_module(model: Any) -> None:
    torch.manual_seed(1)
    model._modules["inner"] = Halving(8, 12)


def _parameter(model: Any) -> None:
    model.inner.weight = nn.Parameter(torch.ones(12, 8))


def _parameter_past_the_module(model: Any) -> None:
    model.inner._parameters["weight"] = nn.Parameter(torch.ones(12, 8))


def _no_bias(model: Any) -> None:
    model.inner.bias = None


def _assigned(model: Any) -> None:
    state = {name: torch.full_like(whole(value), 0.1) for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def _data(model: Any) -> None:
    model.out.weight.data = torch.ones(16, 12)


def _buffer(model: Any) -> None:
    model.shift = torch.zeros(16)


def _double(model: Any) -> None:
    model.double()


def _vocabulary(model: Any) -> None:
    torch.manual_seed(1)
    model.embed, model.out, model.shift = nn.Embedding(20, 8), nn.Linear(12, 20), torch.zeros(20)


def _hook(model: Any) -> None:
    model.inner.register_forward_hook(lambda part, given, found: found + 1)


def _class_of_a_part(model: Any) -> None:
    model.inner.__class__ = Halving


def _forward_of_a_part(model: Any) -> None:
    model.inner.forward = MethodType(lambda self, x: x.repeat(1, 1, 2)[..., :12], model.inner)


CHANGES: list[Callable[[Any], None]] = [
    _config,
    _other_config,
    _number,
    _number_past_the_module,
    _list,
    _train,
    _part,
    _parameter,
    _parameter_past_the_module,
    _no_bias,
    _part_past_the_module,
    _assigned,
    _data,
    _buffer,
    _hook,
    _class_of_a_part,
    _forward_of_a_part,
    _double,
    _vocabulary,
]

IDS = torch.tensor([[3], [5]])


def split() -> Any:
    """A split model whose next step calls what was compiled."""
    made: Any = tpfx.compile(Step().eval(), ["cpu", "cpu"])
    same(made, Step().eval(), IDS)
    return made


def same(model: Any, other: Any, *args: Any, atol: float = 1e-5, **kwargs: Any) -> None:
    """Both return the same, again and again."""
    for _ in range(2):
        found, expected = model(*args, **kwargs), other(*args, **kwargs)
        torch.testing.assert_close(found["logits"], expected["logits"], atol=atol, rtol=1e-5)
        assert found["grad"] == expected["grad"]


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each step, whether it called what was compiled, past Dynamo."""
    known, call = list[bool](), DirectCalls.__call__

    def told(self: DirectCalls, *given: Any) -> Any:
        found = call(self, *given)
        known.append(found is not NOT_DIRECT)
        return found

    monkeypatch.setattr(DirectCalls, "__call__", told)
    return known


@torch.no_grad()
def test_a_step_after_a_change_is_not_the_one_before(direct: list[bool]) -> None:
    model, other = split(), Step().eval()
    for change in CHANGES:
        change(model)
        change(other)
        direct.clear()
        same(model, other, IDS)
        assert direct[-1], change.__name__


@torch.no_grad()
def test_a_step_in_a_changed_world_is_not_the_one_before(
    monkeypatch: pytest.MonkeyPatch, direct: list[bool]
) -> None:
    model, other = split(), Step().eval()
    with monkeypatch.context() as changed:
        changed.setitem(globals(), "SCALE", 5.0)
        same(model, other, IDS)
        changed.setitem(globals(), "bent", torch.relu)
        same(model, other, IDS)
        handle = nn.modules.module.register_module_forward_hook(
            lambda part, given, found: found * 2 if isinstance(part, nn.Linear) else None
        )
        same(model, other, IDS)
        handle.remove()
        same(model, other, IDS)
    direct.clear()
    same(model, other, IDS)
    assert direct[-1]


def test_a_step_of_other_inputs_or_modes_is_not_the_one_before(direct: list[bool]) -> None:
    model, other = split(), Step().eval()
    shift = torch.full((2, 1, 16), 0.5)
    with torch.no_grad():
        for args, kwargs in (
            ((IDS[:1],), {}),
            ((IDS.repeat(3, 1),), {}),
            ((IDS.int(),), {}),
            ((IDS,), {"shout": True}),
            ((IDS, [shift]), {}),
            ((IDS, {"by": shift}), {}),
            ((IDS, {"by": shift.bfloat16()}), {}),
            ((), {"ids": IDS}),
        ):
            same(model, other, *args, **kwargs)
            same(model, other, IDS)
    same(model, other, IDS)
    with torch.inference_mode():
        same(model, other, IDS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        same(model, other, IDS, atol=0.1)
    same(model, other, IDS)
    assert direct[-1]


def test_gradients_after_steps_are_of_what_wants_them(direct: list[bool]) -> None:
    model, other = split(), Step().eval()
    for frozen in (False, True, False):
        for one in (model, other):
            one.inner.requires_grad_(not frozen)
            one.zero_grad()
            for _ in range(2):
                one(IDS)["logits"].sum().backward()
        for (name, found), expected in zip(model.named_parameters(), other.parameters(), strict=True):
            assert (found.grad is None) == (expected.grad is None), name
            if expected.grad is not None:
                torch.testing.assert_close(whole(found.grad), expected.grad)
    assert any(direct)


@torch.no_grad()
def test_what_dynamo_has_let_go_of_is_not_called(direct: list[bool]) -> None:
    model, other = split(), Step().eval()
    torch._dynamo.reset()
    direct.clear()
    same(model, other, IDS)
    assert direct == [False, True]
    with torch.compiler.set_stance("force_eager"):
        direct.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it runs whole
            model(IDS)
        assert direct == [False]
    made = copy.deepcopy(model)
    tpfx.unshard(model)
    direct.clear()
    same(model, other, IDS)
    same(made, other, IDS)
    assert direct == [False, True]


def test_threads_step_at_once() -> None:
    model, other = split(), Step().eval()
    same(model, other, IDS, shout=True)
    failed: list[BaseException] = []

    def steps(row: int) -> None:
        try:
            for at in range(20):
                same(model, other, torch.tensor([[row], [at % 16]]), shout=bool(at % 2))
        except BaseException as problem:
            failed.append(problem)

    threads = [threading.Thread(target=steps, args=(row,)) for row in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
