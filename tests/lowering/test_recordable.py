"""What of a graph cannot be recorded: what the host reads, draws, or is asked to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from tpfx.lowering.recordable import obstacle

CPU = (torch.device("cpu"),)


@torch.library.custom_op("tests_recordable::noisy", mutates_args=())
def noisy(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@noisy.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def why_not(function: Callable[..., Any], *args: torch.Tensor, devices: Any = CPU) -> str | None:
    return obstacle(make_fx(function, tracing_mode="symbolic")(*args).graph, devices)


X, MASK, ROWS = torch.randn(4, 3), torch.tensor([True, False, True, True]), torch.tensor([2, 0])


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (lambda x, rows: x[rows] + 1, (X, ROWS)),
        (lambda x, rows: torch.ops.aten.index_put(x, [rows], x[:2]), (X, ROWS)),
        (lambda x, mask: torch.where(mask[:, None], x, 0.0), (X, MASK)),
        (lambda x, w: (x @ w.t()).softmax(-1), (X, X)),
    ],
)
def test_what_devices_do_alone_is_recorded(function: Callable[..., Any], args: Any) -> None:
    assert why_not(function, *args) is None


@pytest.mark.parametrize(
    ("function", "args", "words"),
    [
        (lambda x, mask: torch.ops.aten.index_put(x, [mask], x[0]), (X, MASK), "the host reads values"),
        (lambda x: torch.ops.aten.native_dropout(x, 0.5, True)[0], (X,), "draws random numbers"),
        (lambda x: noisy(x) + 1, (X,), "which may do things on the host"),
    ],
)
def test_what_the_host_has_a_part_in_is_not(function: Callable[..., Any], args: Any, words: str) -> None:
    assert words in str(why_not(function, *args))


def test_what_lies_elsewhere_is_not() -> None:
    assert "is on the cpu" in str(why_not(lambda x: x + 1, X, devices=(torch.device("cuda", 0),)))
