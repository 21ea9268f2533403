"""What autograd asks of a graph beyond one backward over all results: heard at the node that has run it.

y, z = trained(x, weight)                             # as AOTAutograd made it
y.sum().backward(retain_graph=True)                   # what leads to z alone has no gradient, not zeros
torch.autograd.grad(y.sum(), x, create_graph=True)    # another graph gives gradients that have gradients

AOTAutograd takes a missing gradient of a result for zeros, and cannot be differentiated twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ..capture.gradient_flow import GradientFlow
from ..torch_internals.aot import keep_saved, keeps_graph, node_of_graph

Gradients = Sequence[torch.Tensor | None]

# Makes what computes gradients that have gradients themselves: of some inputs, from those of some results.
Derive = Callable[[Sequence[int], Sequence[int], Sequence[Any]], Callable[..., Sequence[Any]]]


class Trained:
    """A graph with gradients, and what happens when a backward has gone through it.

    Args:
        compiled: what runs it, as AOTAutograd made it.
        flow: how gradients flow through it.
        device: where random numbers are drawn.
        derive: `derive(wanted, given, args)` gives what computes the gradients of some of the graph's tensors
            from some of its tangents: a function of all inputs and these tangents.
    """

    def __init__(
        self, compiled: Callable[..., Any], flow: GradientFlow, device: torch.device, derive: Derive
    ) -> None:
        keep_saved(flow.notes)
        self.compiled, self.flow, self.device, self.derive = compiled, flow, device, derive
        self._derived: dict[Any, Callable[..., Sequence[Any]]] = {}
        self._hear = torch.compiler.disable(
            self._after_backward
        )  # a model may ask for gradients amid its forward

    def __call__(self, *args: Any) -> Any:
        """Run the graph."""
        call = _Call(self.flow, self.device, args)
        results = self.compiled(*args)
        node = node_of_graph(results, self.flow.notes)
        if node is not None:
            call.note_versions(self.flow)
            node.register_hook(partial(self._hear, call))
        return results

    def _after_backward(self, call: _Call, gradients: Gradients, given: Gradients) -> Gradients | None:
        """Autograd has the gradients of a call: what it is to have instead, None for the same."""
        call.check_versions(self.flow)
        tangents = [given[one.position] for one in self.flow.tangents]
        found: Gradients | None
        if torch.is_grad_enabled():
            found = self._differentiable(call, gradients, tangents)
        else:
            found = self._reached(gradients, tangents)
        if not keeps_graph():
            call.let_go()
        return found

    def _reached(self, gradients: Gradients, tangents: Gradients) -> Gradients | None:
        """None for gradients that come from results without any, which AOTAutograd took for zeros."""
        known = sum(1 << at for at, one in enumerate(tangents) if one is not None)
        if known == (1 << len(tangents)) - 1:
            return None
        reach = zip(gradients, self.flow.reach, strict=True)
        return tuple(gradient if own is None or own & known else None for gradient, own in reach)

    def _differentiable(self, call: _Call, gradients: Gradients, tangents: Gradients) -> Gradients:
        """The same gradients with a history: from another graph, which computes the results anew."""
        found: list[torch.Tensor | None] = [None] * len(gradients)
        reached = self._reached(gradients, tangents) or gradients
        wanted = [at for at, one in enumerate(reached) if one is not None]
        given = [at for at, one in enumerate(tangents) if one is not None]
        args = call.inputs(self.flow)
        values = [*args, *(tangents[at] for at in given)]
        key = tuple(wanted), tuple(given), tuple(_kind(value) for value in values)
        if key not in self._derived:
            self._derived[key] = self.derive(wanted, given, values)
        with call.same_random_numbers():
            made = self._derived[key](*values)
        for at, gradient in zip(wanted, made, strict=True):
            found[at] = gradient
        return tuple(found)


def _kind(value: Any) -> Any:
    """What a graph without varying sizes is made for."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.shape, value.stride(), value.dtype, value.requires_grad, type(value)


class _Call:
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
