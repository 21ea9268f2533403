"""A compiled model that several threads call at once, for the first time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tpfx
from tests.support.nets import Net
from tests.support.sharded import CPUS
from tpfx.frontend import compiled_forward
from tpfx.frontend.aot_compiler import _Later
from tpfx.sharded_tensor import ShardedTensor

CALLERS = 3


def test_first_calls_from_several_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has the result and the gradient of what it gave; one looks at the model, the others wait."""
    looks, look = [], compiled_forward.adopt_weights

    def slowly(*given: Any) -> None:
        looks.append(threading.get_ident())
        time.sleep(0.05)  # so that the others come
        look(*given)

    monkeypatch.setattr(compiled_forward, "adopt_weights", slowly)
    plain, model = Net(), tpfx.compile(Net(), CPUS)
    start = threading.Barrier(CALLERS)
    given = [torch.randn(3, 8) for _ in range(CALLERS)]

    def call(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.clone().requires_grad_()
        start.wait()
        result = model(x)
        return result.detach(), torch.autograd.grad(result.sum(), x)[0]

    with ThreadPoolExecutor(CALLERS) as pool:
        found = list(pool.map(call, given))
    for x, (result, gradient) in zip(given, found, strict=True):
        x.requires_grad_()
        expected = plain(x)
        torch.testing.assert_close(result, expected.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), x)[0])
    assert len(looks) == 1 and all(isinstance(one, ShardedTensor) for one in model.parameters())
    for left, right in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(right.full(), left.detach())


def test_what_is_made_at_the_first_run_is_made_once() -> None:
    made: list[int] = []

    def make() -> Any:
        made.append(threading.get_ident())
        time.sleep(0.05)
        return lambda args: [*args, "made"]

    session: Any = SimpleNamespace(only_plans=False)
    later = _Later(session, make)
    with ThreadPoolExecutor(CALLERS) as pool:
        found = list(pool.map(later, [[at] for at in range(CALLERS)]))
    assert found == [[at, "made"] for at in range(CALLERS)] and len(made) == 1
