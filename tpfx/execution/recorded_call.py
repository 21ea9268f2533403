"""One call of a graph with gradients, for what a backward may ask of it: its inputs, its random numbers.

call = Call(flow, device, args)
values = call.inputs(flow)                    # as they were
with call.same_random_numbers(): run(*values)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..capture.gradient_flow import GradientFlow


class Call:
    """One call of a graph: what it was given, as long as a backward may ask for it."""

    def __init__(self, flow: GradientFlow, device: torch.device, args: Sequence[Any]) -> None:
        before = {flow.inputs[at] for at in flow.before}
        self.args: list[Any] | None = [
            arg.detach().clone() if at in before else arg for at, arg in enumerate(args)
        ]
        self.generator = _Generators(device) if flow.random else None
        self.versions: list[int] = []

    def note_versions(self, flow: GradientFlow) -> None:
        """Note how often what the backward part reads has been written into."""
        self.versions = self._versions(flow)

    def _versions(self, flow: GradientFlow) -> list[int]:
        assert self.args is not None
        tensors = (self.args[flow.inputs[at]] for at in flow.read)
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]

    def check_versions(self, flow: GradientFlow) -> None:
        """Refuse gradients of something that has changed since, as eager autograd does.

        Raises:
            RuntimeError: a backward part has read an input that was written into after the forward part.
        """
        if self.args is None:
            return
        for at, was, now in zip(flow.read, self.versions, self._versions(flow), strict=True):
            if was != now:
                value = self.args[flow.inputs[at]]
                name = getattr(value, "qualified_name", None) or f"an input of shape {list(value.shape)}"
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace "
                    f"operation: {name} is at version {now}; expected version {was} instead. Run backward "
                    "before an optimizer steps, or call the model again"
                )

    def let_go(self) -> None:
        """No backward will ask for this call any more."""
        self.args = None

    def inputs(self, flow: GradientFlow) -> list[Any]:
        """All inputs as they were; those that the graph writes into as copies.

        Raises:
            RuntimeError: they have been let go.
        """
        if self.args is None:
            raise RuntimeError("Trying to backward through the graph a second time: pass retain_graph=True")
        written = {flow.inputs[at] for at in flow.state}
        return [arg.detach().clone() if at in written else arg for at, arg in enumerate(self.args)]

    @contextmanager
    def same_random_numbers(self) -> Iterator[None]:
        """Draw what the call has drawn, for as long as this lasts."""
        if self.generator is None:
            yield
            return
        with torch.random.fork_rng([self.generator.device] if self.generator.device.type == "cuda" else []):
            self.generator.set_back()
            yield


class _Generators:
    """The states of the generators that a call may draw from."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on_host = device, torch.get_rng_state()
        self.on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def set_back(self) -> None:
        """Have them as they were."""
        torch.set_rng_state(self.on_host)
        if self.on_device is not None:
            torch.cuda.set_rng_state(self.on_device, self.device)
