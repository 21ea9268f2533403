"""What gradients of a joint graph come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.fx import GraphModule
from torch.nn import functional as F

from tpfx.capture.aot import Compiled, Part, boxed, trace
from tpfx.capture.gradient_flow import GradientFlow
from tpfx.capture.graph import Captured
from tpfx.ir.annotations import Source


class Flows:
    """Keeps how gradients flow."""

    def __init__(self) -> None:
        self.found: list[GradientFlow] = []

    def plan(self, graph: Captured) -> None:
        """Nothing is planned."""

    def finish(self, lowered: GraphModule, part: Part) -> Compiled:
        return boxed(lambda args: lowered(*args))

    def differentiate(self, compiled: Compiled, flow: GradientFlow) -> Compiled:
        self.found.append(flow)
        return compiled


def flow_of(function: Callable[..., Any], *args: torch.Tensor) -> GradientFlow:
    flows = Flows()

    def backend(module: GraphModule, inputs: Sequence[Any]) -> Compiled:
        sources = [Source("input", str(at)) for at in range(len(inputs))]
        return trace(module, sources, flows)

    torch.compile(function, backend=backend)(*args)
    return flows.found[0]


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(shape, requires_grad=True)


def test_which_results_a_gradient_comes_from() -> None:
    flow = flow_of(lambda a, b, c: (a * b, (b + c).exp(), a.detach()), leaf(3), leaf(3), leaf(3))
    assert [one.result for one in flow.tangents] == [0, 1]
    assert list(flow.reach) == [0b01, 0b11, 0b10]
    assert not flow.random and not flow.state and list(flow.inputs) == [0, 1, 2]


def test_what_the_backward_part_reads() -> None:
    flow = flow_of(lambda a, b, c: a * b + c, leaf(3), leaf(3), leaf(3))
    assert list(flow.read) == [0, 1] and list(flow.reach) == [1, 1, 1]


def test_what_is_written_into_and_what_of_it_gradients_depend_on() -> None:
    def count(a: torch.Tensor, state: torch.Tensor, counter: torch.Tensor) -> torch.Tensor:
        before = state.clone()
        state.mul_(2)
        counter.add_(1)
        return a * before

    flow = flow_of(count, leaf(3), torch.ones(3), torch.zeros(()))
    assert list(flow.reach) == [None, None, 1]  # in the order in which they are used
    assert list(flow.state) == [0, 1] and list(flow.before) == [0]


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_whether_it_draws_random_numbers(rate: float) -> None:
    assert flow_of(lambda a: F.dropout(a, 0.5) if rate else a.exp(), leaf(3)).random is bool(rate)
