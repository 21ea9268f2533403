"""torch.export, torch.jit and torch.onnx do to a split model what they would do to the unsharded one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.nets import Net

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def _export(model: Any) -> Any:
    return torch.export.export(model, (X,)).module()


def _trace(model: Any) -> Any:
    return torch.jit.trace(model, X)


def _trace_the_forward(model: Any) -> Any:
    return torch.jit.trace(model.forward, X)


def _script(model: Any) -> Any:
    return torch.jit.script(model)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("export", [_export, _trace, _trace_the_forward, _script])
def test_what_is_made_of_it_is_plain(export: Callable[[Any], Any], part: bool) -> None:
    split: nn.Module = tpfx.compile(Net(), ["cpu"] * 3)
    model = nn.Sequential(nn.Tanh(), split) if part else split
    want = model(X)
    made = export(model)
    torch.testing.assert_close(made(X), want)
    weights = made.state_dict().values() if hasattr(made, "state_dict") else ()
    assert all(type(weight) in (torch.Tensor, nn.Parameter) for weight in weights)
    assert isinstance(split.up.weight, tpfx.ShardedTensor)
    torch.testing.assert_close(model(X), want)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_model_that_cannot_be_reached_is_refused() -> None:
    model = tpfx.compile(Net(), ["cpu", "cpu"])
    with pytest.raises(tpfx.ModelError, match=r"call tpfx\.unshard\(model\) first"):
        torch.jit.trace(lambda x: model(x) * 2, X)
