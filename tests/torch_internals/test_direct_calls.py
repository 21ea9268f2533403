"""What `DirectCalls` takes for granted of Dynamo's cache of graphs, and of how it calls one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tpfx.torch_internals.dynamo_cache import NOT_DIRECT, DirectCalls, forget_graphs


def backend(module: torch.fx.GraphModule, _: Any) -> Any:
    """Runs a graph as it is."""
    return module.forward


def scaled(factor: float) -> Any:
    """A function with every kind of argument, and a cell."""

    def function(x: torch.Tensor, /, y: float = 1.0, *more: float, sign: int = 1, **named: Any) -> Any:
        return x * factor * sign + y + sum(more) + named.get("last", 0), len(more)

    return function


def called(function: Any) -> tuple[Any, DirectCalls]:
    """What Dynamo compiles, and what calls that."""
    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=False)
    return compiled, DirectCalls(compiled)


X = torch.arange(3.0)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((X,), {}), ((X, 2.0), {}), ((X, 2.0, 3.0, 4.0), {"sign": -1}), ((X,), {"y": 3.0, "last": 5.0})],
)
def test_any_arguments_reach_what_was_compiled(args: Any, kwargs: Any) -> None:
    function = scaled(3.0)
    compiled, direct = called(function)
    assert direct(args, kwargs) is NOT_DIRECT  # nothing is compiled yet
    compiled(*args, **kwargs)
    direct.note()
    found, expected = direct(args, kwargs), function(*args, **kwargs)
    assert torch.equal(found[0], expected[0]) and found[1] == expected[1]
    assert direct((X.double(), *args[1:]), kwargs) is NOT_DIRECT
    assert direct((*args, *[1.0] * 5), {"sign": 1}) is NOT_DIRECT


def test_what_dynamo_has_forgotten_is_not_called() -> None:
    compiled, direct = called(scaled(2.0))
    for forget in (torch._dynamo.reset, lambda: forget_graphs(lambda made_by, _: made_by is backend)):
        compiled(X)
        direct.note()
        assert direct((X,), {}) is not NOT_DIRECT
        forget()
        assert direct((X,), {}) is NOT_DIRECT


def test_nothing_is_called_where_dynamo_would_do_otherwise() -> None:
    compiled, direct = called(scaled(2.0))
    compiled(X)
    direct.note()
    with torch.compiler.set_stance("force_eager"):
        assert direct((X,), {}) is NOT_DIRECT
    with torch.compiler.set_stance("default"):
        assert direct((X,), {}) is not NOT_DIRECT
    asked = []
    torch.fx.symbolic_trace(_Asking(lambda: asked.append(direct((X,), {}))))
    assert asked == [NOT_DIRECT]


class _Asking(torch.nn.Module):
    def __init__(self, ask: Any) -> None:
        super().__init__()
        self.ask = ask

    def forward(self, x: Any) -> Any:
        """Asks while torch.fx traces."""
        self.ask()
        return x


def test_a_cell_that_has_changed_is_seen() -> None:
    factor = 2.0

    def function(x: torch.Tensor) -> torch.Tensor:
        return x * factor

    compiled, direct = called(function)
    compiled(X)
    direct.note()
    found = direct((X,), {})
    assert torch.equal(found, X * 2)
    factor = 3.0
    assert direct((X,), {}) is NOT_DIRECT
    assert torch.equal(compiled(X), X * 3)
