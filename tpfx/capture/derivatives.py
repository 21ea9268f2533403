"""Second derivatives: the gradients of a graph as a graph of its own, planned and divided as any other.

    gradients = GradientsOf(module, flow, autocast, wanted=(0,), given=(0,), values=values)
    (slope,) = gradients(x, weight, tangent)     # which may be differentiated, and so on

It computes the results anew from the inputs and differentiates them, all under AOTAutograd: so what the model
detaches, or computes without gradients, stays so, which the backward part of a graph does not tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..errors import TpfxError
from ..torch_internals.aot import Tangent
from .gradient_flow import GradientFlow


class Autocast:
    """Whether operations are cast on a kind of device, as it is when this is made."""

    def __init__(self, kind: str) -> None:
        self.kind, self.enabled = kind, torch.is_autocast_enabled(kind)
        self.dtype = torch.get_autocast_dtype(kind)

    def again(self) -> AbstractContextManager[Any]:
        """The same state again."""
        return torch.autocast(self.kind, self.dtype) if self.enabled else nullcontext()


class GradientsOf(torch.nn.Module):
    """What computes gradients of a graph's inputs, in a way that can be differentiated.

    Args:
        module: the graph, which takes its inputs one by one and returns a sequence.
        flow: how gradients flow through it.
        autocast: the state that it was captured in.
        wanted: whose gradients, counted among those inputs that are tensors.
        given: the tangents that they come from.
        values: the inputs, then these tangents; of those that are no tensors, the values are kept.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        flow: GradientFlow,
        autocast: Autocast,
        wanted: Sequence[int],
        given: Sequence[int],
        values: Sequence[Any],
    ) -> None:
        super().__init__()
        self.module, self.autocast = module, autocast
        self.tangents = [flow.tangents[at] for at in given]
        self.wanted = [flow.inputs[at] for at in wanted]
        self.values = [None if isinstance(value, torch.Tensor) else value for value in values]
        self.tensors = [at for at, value in enumerate(values) if isinstance(value, torch.Tensor)]
        if any(tangent.result is None for tangent in self.tangents):
            raise TpfxError(
                "a gradient with a history (create_graph=True) is asked of a graph that writes into an input "
                "that needs gradients; make a new tensor in the model instead of writing into this one"
            )

    def forward(self, *tensors: torch.Tensor) -> Sequence[torch.Tensor | None]:
        """The gradients of the wanted inputs."""
        values: list[Any] = list(self.values)
        for at, tensor in zip(self.tensors, tensors, strict=True):
            values[at] = tensor
        count = len(values) - len(self.tangents)
        with torch.enable_grad(), self.autocast.again():
            results = self.module(*values[:count])
        roots = [_root(results, tangent) for tangent in self.tangents]
        inputs = [values[at] for at in self.wanted]
        return torch.autograd.grad(roots, inputs, values[count:], create_graph=True, allow_unused=True)


def _root(results: Sequence[torch.Tensor], tangent: Tangent) -> torch.Tensor:
    """The tensor that a tangent is the gradient of."""
    assert tangent.result is not None
    result = results[tangent.result]
    return result if not tangent.of_base or result._base is None else result._base
