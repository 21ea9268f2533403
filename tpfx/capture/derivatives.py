"""Gradients of a graph as a graph of their own, planned and divided as any other.

    asked = Asked(of=(tangent,), inputs=(0,), history=True)
    gradients = GradientsOf(module, autocast, asked, [x, weight, tangent])
    (slope,) = gradients(x, weight, tangent)     # which may be differentiated, and so on

It computes the results anew from the inputs and differentiates them, all under AOTAutograd: so what the model
detaches, or computes without gradients, stays so, which the backward part of a graph does not tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule

from ..errors import TpfxError
from ..torch_internals.aot import Tangent
from .nested_results import cut_at


@dataclass(frozen=True)
class Asked:
    """Which gradients of a graph are asked for.

    Attributes:
        of: what they come from: results whose own gradients are given.
        inputs: the positions of the inputs whose gradients are wanted.
        given: results whose gradients are wanted too, those that come from other results; they are given.
        computed: the same, of results that the graph computes again itself.
        history: whether the gradients are to have gradients themselves.
    """

    of: tuple[Tangent, ...]
    inputs: tuple[int, ...]
    given: tuple[int, ...] = ()
    computed: tuple[int, ...] = ()
    history: bool = False


class Autocast:
    """Whether operations are cast on a kind of device, as it is when this is made."""

    def __init__(self, kind: str) -> None:
        self.kind, self.enabled = kind, torch.is_autocast_enabled(kind)
        self.dtype = torch.get_autocast_dtype(kind)

    def again(self) -> AbstractContextManager[Any]:
        """The same state again."""
        return torch.autocast(self.kind, self.dtype) if self.enabled else nullcontext()


class GradientsOf(torch.nn.Module):
    """What computes gradients of a graph: of inputs, then of given results, then of computed ones.

    Args:
        module: the graph, which takes its inputs one by one and returns a sequence.
        autocast: the state that it was captured in.
        asked: which gradients.
        values: the inputs, the given results, then the gradients of `asked.of`; of those that are no tensors,
            the values are kept.
    """

    def __init__(
        self, module: torch.nn.Module, autocast: Autocast, asked: Asked, values: Sequence[Any]
    ) -> None:
        super().__init__()
        if any(tangent.result is None for tangent in asked.of):
            raise TpfxError(
                "a gradient with a history (create_graph=True) is asked of a graph that writes into an input "
                "that needs gradients; make a new tensor in the model instead of writing into this one"
            )
        self.is_cut = bool(asked.given or asked.computed)
        if self.is_cut:
            assert isinstance(module, GraphModule), "results within others are those of Dynamo's graphs"
            module = cut_at(module, asked.given, asked.computed)
        self.module, self.autocast, self.asked = module, autocast, asked
        self.count = len(values) - len(asked.of)
        self.wanted = [*asked.inputs, *range(self.count - len(asked.given), self.count)]
        self.values = [None if isinstance(value, torch.Tensor) else value for value in values]
        self.tensors = [at for at, value in enumerate(values) if isinstance(value, torch.Tensor)]

    def forward(self, *tensors: torch.Tensor) -> Sequence[torch.Tensor | None]:
        """The gradients that are asked for."""
        values: list[Any] = list(self.values)
        for at, tensor in zip(self.tensors, tensors, strict=True):
            values[at] = tensor
        for at in () if self.asked.history else self.wanted:
            values[at] = values[at].detach().requires_grad_()
        with torch.enable_grad(), self.autocast.again():
            made = self.module(*values[: self.count])
        results, leaves = made if self.is_cut else (made, ())
        roots = [_root(results, tangent) for tangent in self.asked.of]
        wanted = [*(values[at] for at in self.wanted), *leaves]
        gradients, history = values[self.count :], self.asked.history
        return torch.autograd.grad(roots, wanted, gradients, create_graph=history, allow_unused=True)


def _root(results: Sequence[torch.Tensor], tangent: Tangent) -> torch.Tensor:
    """The tensor that a tangent is the gradient of."""
    assert tangent.result is not None
    result = results[tangent.result]
    return result if not tangent.of_base or result._base is None else result._base
