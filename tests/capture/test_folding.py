"""Graphs of layers that are alike: traced with three of them, they are what tracing all gives."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import Node

from tests.support.models import MODELS, inputs, tiny
from tpfx.capture import aot
from tpfx.capture.capture import capture
from tpfx.capture.folding import NotAlike
from tpfx.capture.graph import Captured, Phase
from tpfx.ir import alike
from tpfx.ir.provenance import module_path

LAYERS = 7


class Layer(torch.nn.Module):
    """A product, a constant, and what the layer has kept."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        now = torch.cat([torch.tensor([], dtype=x.dtype).view(0, 4), kept, self.up(x)])
        return x + now.sum(0).tanh(), now


class Stack(torch.nn.Module):
    """Layers, and a vector that all share."""

    def __init__(self, layer: Callable[[], torch.nn.Module] = Layer) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layer() for _ in range(LAYERS))
        self.scale = torch.nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor, kept: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        results = []
        for layer, before in zip(self.layers, kept, strict=True):
            x, now = layer(x * self.scale, before)
            results.append(now)
        return x.relu(), results


class InPlace(Layer):
    """Writes into what the layers before have returned."""

    def forward(self, x: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = kept + x.sum(0)
        x.add_(self.up(kept).sum(0))
        return x, x[:1] * seen


class Counts(Layer):
    """Writes into a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(4))

    def forward(self, x: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += x.sum(0)
        return super().forward(x + self.calls, kept)


def given() -> dict[str, Any]:
    return {"x": torch.randn(3, 4), "kept": [torch.randn(2 + at, 4) for at in range(LAYERS)]}


def text(captured: Captured) -> list[str]:
    """Everything of a graph that later stages read, a line for each node."""
    numbers: dict[Node, int] = {}

    def shown(value: Any) -> str:
        if isinstance(value, Node):
            return f"%{numbers[value]}"
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(shown, value))}]"
        if isinstance(value, torch.Tensor):
            return f"{value.dtype}{[str(one) for one in value.shape]}{[str(one) for one in value.stride()]}"
        return str(value)

    lines = []
    for node in captured.module.graph.nodes:
        source = re.sub(r"_\d+\b", "", str(node.meta.get("stack_trace")))
        called = shown([node.args, *sorted(node.kwargs.items())])
        known = shown(node.meta.get("val")), module_path(node), node.meta.get("custom"), source
        lines.append(f"{node.op} {node.target} {called} {known}")
        numbers[node] = len(numbers)
    return lines


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each graph that is traced, whether layers were left out, and put back."""
    found: list[bool] = []
    monkeypatch.setattr(alike, "WORTH", 1)
    trace = aot.trace_module

    def noted(
        module: torch.nn.Module, fakes: Any, sources: Any, use: Any, nesting: Any, folded: Any = None
    ) -> Any:
        try:
            compiled = trace(module, fakes, sources, use, nesting, folded)
        except NotAlike:
            found.append(False)
            raise
        found.append(folded is not None)
        return compiled

    monkeypatch.setattr(aot, "trace_module", noted)
    return found


def traced(
    model: torch.nn.Module, example: dict[str, Any], phase: Phase = "prefill", *, whole: bool = False
) -> list[list[str]]:
    with pytest.MonkeyPatch.context() as patch:
        if whole:
            patch.setattr(aot, "fold", lambda module: None)
        return [text(one) for one in capture(model, example, phase=phase)]


def test_layers_that_are_alike(folded: list[bool]) -> None:
    model = Stack()
    assert traced(model, given()) == traced(model, given(), whole=True)
    assert folded == [True, False]


def test_layers_with_sizes_of_their_own(folded: list[bool]) -> None:
    model, example = Stack(), given()
    example["kept"] = [torch.randn(5, 4) for _ in range(LAYERS)]
    assert traced(model, example) == traced(model, example, whole=True)
    assert folded == [True, False]


@pytest.mark.parametrize("layer", [InPlace, Counts])
def test_layers_that_write(layer: type[Layer], folded: list[bool]) -> None:
    model, example = Stack(layer), given()
    example["kept"] = [torch.randn(1, 4) for _ in range(LAYERS)]
    assert traced(model, example) == traced(model, example, whole=True)
    assert not any(folded)


def test_a_layer_that_differs(folded: list[bool]) -> None:
    model = Stack()
    model.layers[5].up = torch.nn.Linear(4, 4, bias=False)
    assert traced(model, given()) == traced(model, given(), whole=True)
    assert folded == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, folded: list[bool]) -> None:
    config = MODELS[name][1]
    depth = next(key for key in ("num_hidden_layers", "n_layer") if key in config)
    model = tiny(name, **{depth: LAYERS})
    example = dict(inputs(model))
    assert traced(model, example, "decode") == traced(model, example, "decode", whole=True)
    assert folded == [True, True, False, False]
