"""A model and its split twin, used alike: `use(model, call)` returns what shall be the same.

agree(Net, lambda model, call: [call(x)], devices=2)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import tpfx
from tests.support.sharded import whole

Use = Callable[[nn.Module, Callable[..., Any]], Sequence[torch.Tensor | None]]


def agree(
    make: Callable[[], nn.Module], use: Use, devices: int = 2, door: str = "compile", tolerance: float = 1e-4
) -> nn.Module:
    """Use a model and its split twin from the same random numbers; the split one."""
    torch.manual_seed(0)
    model = make()
    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    wanted = [_plain(value) for value in use(model, model)]
    call = split(twin, devices, door)
    torch.manual_seed(1)
    found = [_plain(value) for value in use(twin, call)]
    assert [value is None for value in found] == [value is None for value in wanted]
    for at, (got, want) in enumerate(zip(found, wanted, strict=True)):
        if got is not None and want is not None:
            assert got.shape == want.shape and got.dtype == want.dtype, at
            error = (got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-3)
            assert error < tolerance, f"value {at}: relative error {error:.1e}"
    return twin


def split(model: nn.Module, devices: int, door: str) -> Callable[..., Any]:
    """A model split by one of the two doors."""
    if door == "compile":
        return tpfx.compile(model, ["cpu"] * devices)
    return torch.compile(model, backend="tpfx", options={"devices": ("cpu",) * devices})


def gradients(model: nn.Module) -> list[torch.Tensor | None]:
    """Those of all weights."""
    return [weight.grad for weight in model.parameters()]


def _plain(value: torch.Tensor | None) -> torch.Tensor | None:
    if value is None:
        return None
    made = whole(value).detach()
    return (made.to_dense() if made.is_sparse else made).clone()
