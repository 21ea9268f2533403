"""Parametrized weights: split as others, whether they were parametrized before `compile` or later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import tpfx
from tests.support.sharded import whole

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Cayley(nn.Module):
    """An orthogonal matrix of any one, by a linear system."""

    def forward(self, w: Tensor) -> Tensor:
        skew, one = w.triu(1) - w.triu(1).mT, torch.eye(w.shape[-1])
        return torch.linalg.solve(one + skew, one - skew)


class Symmetric(nn.Module):
    """A symmetric matrix of its upper half."""

    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).mT

    def right_inverse(self, w: Tensor) -> Tensor:
        return w.triu()


def _cayley(model: Any) -> None:
    parametrize.register_parametrization(model[0], "weight", Cayley())


def _symmetric(model: Any) -> None:
    parametrize.register_parametrization(model[0], "weight", Symmetric())


def _weight_norm(model: Any) -> None:
    parametrizations.weight_norm(model[2])


def _spectral_norm(model: Any) -> None:
    parametrizations.spectral_norm(model[2])


def _orthogonal(model: Any) -> None:
    parametrizations.orthogonal(model[2])


def _trained(bind: Callable[[Any], None], when: str, devices: int) -> list[Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 24))
    steps = {"before": (bind, _split), "after": (_split, bind), "after a call": (_split, _call, bind)}
    for step in steps[when] if devices else (bind,):
        torch.manual_seed(1)
        step(*((model, devices) if step is _split else (model,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found: list[Any] = []
    for _ in range(2):
        result = model(X)
        result.square().mean().backward()
        found += [result.detach(), *(weight.grad for weight in model.parameters())]
        optimizer.step()
        model.zero_grad()
    if devices:
        assert not tpfx.report(model).whole_calls
    return [whole(one).clone() for one in (*found, model.eval()(X).detach())]


def _split(model: Any, devices: int) -> None:
    tpfx.compile(model, ["cpu"] * devices)


def _call(model: Any) -> None:
    with torch.no_grad():
        model(X)


@pytest.mark.parametrize(
    ("bind", "when", "devices"),
    [
        (_cayley, "before", 2),
        (_cayley, "after a call", 3),
        (_symmetric, "after a call", 2),
        (_weight_norm, "after", 3),
        (_spectral_norm, "after a call", 3),
        (_orthogonal, "before", 2),
        pytest.param(_orthogonal, "after a call", 2, marks=pytest.mark.slow),
        pytest.param(_weight_norm, "before", 2, marks=pytest.mark.slow),
        pytest.param(_spectral_norm, "before", 2, marks=pytest.mark.slow),
    ],
)
def test_a_parametrized_weight_trains(bind: Callable[[Any], None], when: str, devices: int) -> None:
    got, want = _trained(bind, when, devices), _trained(bind, when, 0)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_a_singular_matrix_is_an_error_still(train: bool) -> None:
    class Inverse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.linalg.inv(self.weight)

    model = tpfx.compile(Inverse(), ["cpu", "cpu"])
    with torch.set_grad_enabled(train):
        torch.testing.assert_close(whole(model(torch.ones(2, 4)).detach()), torch.ones(2, 4))
        with torch.no_grad():
            model.weight.zero_()
        with pytest.raises(torch.linalg.LinAlgError, match="singular"):
            model(torch.ones(2, 4))
