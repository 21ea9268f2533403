"""What autograd asks of a graph beyond one backward over all results: heard at the node that has run it.

y, z = trained(x, weight)                             # as AOTAutograd made it
y.sum().backward(retain_graph=True)                   # what leads to z alone has no gradient, not zeros
torch.autograd.grad(y.sum(), x, create_graph=True)    # another graph gives gradients that have gradients

AOTAutograd takes a missing gradient of a result for zeros, and cannot be differentiated twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ..capture.derivatives import Asked
from ..capture.gradient_flow import GradientFlow
from ..errors import ModelError
from ..torch_internals.aot import in_transform, keep_saved, node_of_graph
from ..torch_internals.backward_pass import keeps_graph
from ..torch_internals.module_changes import CHANGES
from .recorded_call import Call
from .result_gradients import Derive, Gradients, ResultGradients, results_in_order

NOT_TRANSFORMED = (
    "what torch.func transforms, or derives in forward mode, cannot be split; transform what "
    "tpfx.unshard(copy.deepcopy(model)) gives"
)


class Trained:
    """A graph with gradients, and what happens when a backward has gone through it.

    Args:
        compiled: what runs it, as AOTAutograd made it.
        flow: how gradients flow through it.
        device: where random numbers are drawn.
        derive: `derive(asked, values)` gives what computes gradients of the graph from such values: its
            inputs, results that are given, gradients of results.
    """

    def __init__(
        self, compiled: Callable[..., Any], flow: GradientFlow, device: torch.device, derive: Derive
    ) -> None:
        keep_saved(flow.notes)
        self.compiled, self.flow, self.device, self.derive = compiled, flow, device, derive
        self._order = results_in_order(flow)
        self._derived: dict[Any, Callable[..., Sequence[Any]]] = {}
        self._hear = torch.compiler.disable(
            self._after_backward
        )  # a model may ask for gradients amid its forward

    def __call__(self, *args: Any) -> Any:
        """Run the graph.

        Raises:
            ModelError: it would be derived in forward mode.
        """
        call = Call(self.flow, self.device, args)
        try:
            results = self.compiled(*args)
        except NotImplementedError as problem:
            if not in_transform():
                raise
            raise ModelError(NOT_TRANSFORMED) from problem
        node = node_of_graph(results, self.flow.notes)
        if node is None:
            return results
        call.note_versions(self.flow)
        between = ResultGradients(self.flow, call, self._gradients) if self._order else None
        hear = partial(self._hear, call, between)
        CHANGES.without_counting(lambda: node.register_hook(hear))
        return results if between is None else between.lead(results, self._order)

    def _after_backward(
        self, call: Call, between: ResultGradients | None, gradients: Gradients, given: Gradients
    ) -> Gradients | None:
        """Autograd has the gradients of a call: what it is to have instead, None for the same."""
        call.check_versions(self.flow)
        tangents = [given[one.position] for one in self.flow.tangents]
        found: Gradients | None
        if torch.is_grad_enabled():
            found = self._differentiable(call, gradients, tangents)
        else:
            found = self._reached(gradients, tangents)
        if between is not None:
            found = between.with_those_of_results(gradients if found is None else found)
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

    def _differentiable(self, call: Call, gradients: Gradients, tangents: Gradients) -> Gradients:
        """The same gradients with a history: from another graph, which computes the results anew."""
        found: list[torch.Tensor | None] = [None] * len(gradients)
        reached = self._reached(gradients, tangents) or gradients
        wanted = [at for at, one in enumerate(reached) if one is not None]
        given = [at for at, one in enumerate(tangents) if one is not None]
        if wanted:
            of = tuple(self.flow.tangents[at] for at in given)
            asked = Asked(of, tuple(self.flow.inputs[at] for at in wanted), history=True)
            made = self._gradients(call, asked, [tangents[at] for at in given])
            for at, gradient in zip(wanted, made, strict=True):
                found[at] = gradient
        return tuple(found)

    def _gradients(self, call: Call, asked: Asked, values: Sequence[Any]) -> Sequence[torch.Tensor | None]:
        """Gradients of a call, from results that are given and gradients of results."""
        values = [*call.inputs(self.flow), *values]
        key = asked, tuple(_kind(value, asked.history) for value in values)
        if key not in self._derived:
            self._derived[key] = self.derive(asked, values)
        with call.same_random_numbers():
            return self._derived[key](*values)


def _kind(value: Any, history: bool) -> Any:
    """What a graph without varying sizes is made for."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.shape, value.stride(), value.dtype, value.requires_grad and history, type(value)
