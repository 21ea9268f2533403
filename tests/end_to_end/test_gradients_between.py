"""Gradients of results that other results are computed from: hidden states, attention weights, features.

In the unsharded model what flows back through such a result is seen by its hooks, `retain_grad` and
`torch.autograd.grad`. (torch's own compilers show what comes from outside of the graph alone.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.autograd import agree, gradients

Values = Sequence[torch.Tensor | None]

SLOW = pytest.mark.slow


class States(nn.Module):
    """Returns each layer's state beside the output, as models of transformers do; with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head, self.drop = nn.Linear(8, 5), nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        states = {}
        for at, layer in enumerate(self.layers):
            x = x + self.drop(layer(x).tanh())
            states[f"state {at}"] = x
        return self.head(x), states


class Views(nn.Module):
    """Results that are views, of its input too; the same tensor twice; one without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(6, 8), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flat = x.unsqueeze(0)
        h = self.a(flat).tanh()
        first, second = h.split([6, 10], -1)
        y = self.b(first)
        z = self.c(y[..., :4]) + second[..., :3].detach()
        return z, h, first, second, y, y, flat, z.detach()


def _states(call: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    out, states = call(torch.randn(4, 8))
    return out, list(states.values())


def kept(model: nn.Module, call: Any) -> Values:
    out, states = _states(call)
    for state in states:
        state.retain_grad()
    (out.square().sum() + states[1].sum()).backward()
    return [*(state.grad for state in states), *gradients(model)]


def one_kept(model: nn.Module, call: Any) -> Values:
    out, states = _states(call)
    states[0].retain_grad()
    (out.square().sum() + states[1].square().sum()).backward()
    return [states[0].grad, *gradients(model)]


def changed_by_hooks(model: nn.Module, call: Any) -> Values:
    out, states = _states(call)
    states[2].register_hook(lambda gradient: gradient * 0)
    states[1].register_hook(lambda gradient: gradient + 1)
    handle = states[0].register_hook(lambda gradient: gradient * 100)
    out.square().sum().backward(retain_graph=True)
    handle.remove()
    out.sum().backward()
    return gradients(model)


def changed_by_hooks_of_what_is_gone(model: nn.Module, call: Any) -> Values:
    out, states = _states(call)
    states[1].register_hook(lambda gradient: gradient.clamp(min=0))
    del states
    out.square().sum().backward()
    return gradients(model)


def asked_for(model: nn.Module, call: Any) -> Values:
    out, states = _states(call)
    weight = next(model.parameters())
    seen = [*torch.autograd.grad(out.square().sum(), states, retain_graph=True)]
    seen += torch.autograd.grad(out.square().sum(), [weight, states[1]], retain_graph=True)
    seen += torch.autograd.grad(states[1].sum(), [states[2], states[0]], retain_graph=True, allow_unused=True)
    out.sum().backward(inputs=[states[0], weight], retain_graph=True)
    seen += [states[0].grad, *gradients(model)]
    (seen[1] + states[1]).sum().backward(inputs=list(model.parameters()))
    return [*seen, *gradients(model)]


def seen_together(model: nn.Module, call: Any) -> Values:
    out, states = _states(call)
    seen: list[Any] = []
    torch.autograd.graph.register_multi_grad_hook(states, seen.extend)
    out.square().sum().backward()
    return [*seen, *gradients(model)]


def penalized(model: nn.Module, call: Any) -> Values:
    x = torch.randn(4, 8, requires_grad=True)
    out, states = call(x)
    slopes = torch.autograd.grad(out.pow(3).sum(), [states["state 1"], x], create_graph=True)
    states["state 0"].retain_grad()
    sum((slope.square().sum() for slope in slopes), out.sum()).backward()
    return [*slopes, x.grad, states["state 0"].grad, *gradients(model)]


def views(model: nn.Module, call: Any) -> Values:
    x = torch.randn(4, 8, requires_grad=True)
    results = call(x)[:-1]
    for result in results:
        result.retain_grad()
    results[6].register_hook(lambda gradient: gradient * 2)
    (results[0].square().sum() + results[3].sum() + results[5].mean()).backward()
    return [*results, *(result.grad for result in results), x.grad, *gradients(model)]


USES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "hooks change them": (States, changed_by_hooks),
    "they are asked for": (States, asked_for),
    "views": (Views, views),
}
MORE: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "all are kept": (States, kept),
    "one is kept": (States, one_kept),
    "a hook of several": (States, seen_together),
    "hooks of what has been let go": (States, changed_by_hooks_of_what_is_gone),
    "gradients of gradients": (States, penalized),
}
ALL = {**USES, **MORE}
DEVICES = [2, pytest.param(3, marks=SLOW)]


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("name", [*USES, *(pytest.param(name, marks=SLOW) for name in MORE)])
def test_gradients_between_are_those_of_the_unsharded_model(name: str, devices: int) -> None:
    make, use = ALL[name]
    agree(make, use, devices, tolerance=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_gradients_between_by_the_other_door(name: str) -> None:
    make, use = ALL[name]
    agree(make, use, door="backend", tolerance=1e-3)
