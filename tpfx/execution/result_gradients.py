"""Results as autograd has them: behind those that they are computed from, as in the unsharded model.

out, h = trained(x, weight)      # out is computed from h
h.retain_grad()                  # h.grad will have what flows back from out, too

A graph is one node of autograd, which takes the gradients of all results at once; so each result has a node
of its own before it. These hand on what they are given. Only where somebody looks at a gradient in between,
by a hook, `retain_grad` or `torch.autograd.grad`, a graph of its own computes what flows back to there.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from graphlib import TopologicalSorter
from typing import Any

import torch

from ..capture.derivatives import Asked
from ..capture.gradient_flow import GradientFlow
from ..errors import TpfxError
from ..sharded_tensor.tensor import copy_dynamic
from ..torch_internals.aot import Tangent
from ..torch_internals.backward_pass import ASKED, current_pass, hooks_on, passes_through
from ..torch_internals.module_changes import CHANGES
from .recorded_call import Call

aten = torch.ops.aten

Gradients = Sequence[torch.Tensor | None]

# Makes what computes gradients, for values such as these.
Derive = Callable[[Asked, Sequence[Any]], Callable[..., Sequence[Any]]]


def results_in_order(flow: GradientFlow) -> tuple[int, ...]:
    """The results that are computed from others, and those others, each after what it is computed from."""
    return tuple(TopologicalSorter(flow.within).static_order())


class ResultGradients:
    """How gradients flow back between the results of one call.

    Args:
        flow: how they flow in the graph.
        call: the call.
        compute: `compute(call, asked, values)` gives gradients, from given results and gradients of results.
    """

    def __init__(
        self, flow: GradientFlow, call: Call, compute: Callable[[Call, Asked, Sequence[Any]], Gradients]
    ) -> None:
        self.flow, self.call, self.compute = flow, call, compute
        self._inner: dict[int, _Inner] = {}
        self._waiting: dict[Any, torch.Tensor] = {}  # by pass and place: what has been computed so far
        self._seen: tuple[Any, frozenset[int]] = None, frozenset()

    def lead(self, results: Sequence[Any], order: Sequence[int]) -> list[Any]:
        """The results of the call, each behind those that it is computed from."""
        made = list(results)
        inner = {one for nearest in self.flow.within.values() for one in nearest}
        for at in order:
            if isinstance(made[at], torch.Tensor) and made[at].requires_grad:
                before = [made[one] for one in self.flow.within.get(at, ())]
                raw, made[at] = made[at], _behind(self, at, made[at], *before)
                copy_dynamic(raw, made[at])
                if at in inner:
                    self._inner[at] = _Inner(made[at])
        for at, first in self.flow.same.items():
            made[at] = made[first]
        return made

    def flow_back(self, at: int, gradient: torch.Tensor | None, graph: Any) -> Gradients:
        """What a result hands on of its gradient: to the graph, then to the results that it is computed from.

        Args:
            at: the result.
            gradient: its gradient; None for none.
            graph: the node that leads to the graph.
        """
        front = [] if gradient is None else self._front(at)
        if front:
            self._compute(at, gradient, front, passes_through(graph))
            gradient = None
        task = current_pass()
        return gradient, *(
            self._waiting.pop((task, "result", one), None) for one in self.flow.within.get(at, ())
        )

    def with_those_of_results(self, gradients: Gradients) -> Gradients:
        """The gradients of the graph's tensors, with what has come from results but not through the graph."""
        task, found = current_pass(), list(gradients)
        for at, position in enumerate(self.flow.inputs) if self._waiting else ():
            own, other = found[at], self._waiting.pop((task, "input", position), None)
            found[at] = own if other is None else other if own is None else own + other
        return tuple(found)

    def _front(self, at: int) -> list[int]:
        """The results that somebody looks at and that this one is computed from, none of them between."""
        looked_at = self._looked_at()
        found, seen = set(), set()
        waiting = list(self.flow.within.get(at, ())) if looked_at else []
        while waiting:
            one = waiting.pop()
            if one in looked_at:
                found.add(one)
            elif one not in seen:
                seen.add(one)
                waiting += self.flow.within.get(one, ())
        return sorted(found)

    def _looked_at(self) -> frozenset[int]:
        """The results whose gradients somebody looks at in the backward that runs now."""
        now = current_pass(), CHANGES.number()  # a hook may register others
        if self._seen[0] != now:
            self._seen = now, frozenset(at for at, one in self._inner.items() if one.is_looked_at())
        return self._seen[1]

    def _compute(self, at: int, gradient: Any, front: Sequence[int], to_inputs: bool) -> None:
        """Compute what flows from a result to others, and to inputs without going through these."""
        self.call.check_versions(self.flow)
        tensors = {one: self._inner[one].unchanged() for one in front}
        given = tuple(one for one, tensor in tensors.items() if tensor is not None)
        computed = tuple(one for one, tensor in tensors.items() if tensor is None)
        if computed and torch.is_grad_enabled():
            raise TpfxError(
                "a gradient with a history (create_graph=True) flows through a result of the model that has "
                "a hook, and that has been let go or written into since: keep it as it is until then"
            )
        reach = zip(self.flow.inputs, self.flow.reach, strict=True)
        inputs = tuple(position for position, bits in reach if bits is not None) if to_inputs else ()
        asked = Asked((Tangent(-1, at),), inputs, given, computed, torch.is_grad_enabled())
        made = self.compute(self.call, asked, [*(tensors[one] for one in given), gradient])
        places = [*(("input", one) for one in inputs), *(("result", one) for one in (*given, *computed))]
        for place, value in zip(places, made, strict=True):
            key = current_pass(), *place
            if value is not None:
                self._waiting[key] = value if key not in self._waiting else self._waiting[key] + value


class _Inner:
    """A result that others are computed from, and who looks at its gradient. It is not kept alive."""

    def __init__(self, result: torch.Tensor) -> None:
        self._result, self._node = weakref.ref(result), weakref.ref(result.grad_fn)
        self._hooks, self._version = hooks_on(result), result._version

    def _tensor(self) -> torch.Tensor | None:
        """The result, unless it has been let go or, written into, has another history."""
        result = self._result()
        return result if result is not None and result.grad_fn is self._node() else None

    def unchanged(self) -> torch.Tensor | None:
        """The result as the call has given it, if it is there."""
        result = self._tensor()
        return result if result is not None and result._version == self._version else None

    def is_looked_at(self) -> bool:
        """Whether the backward that runs now shows the result's gradient to anyone, or may later."""
        node, result = self._node(), self._tensor()
        if node is None:
            return False
        later = result is not None and (result.retains_grad or torch.is_grad_enabled())
        return bool(self._hooks() or later or ASKED.of(node)) and passes_through(node)


class _Behind(torch.autograd.Function):
    """A result, which has its gradient before those that it is computed from."""

    @staticmethod
    def forward(
        ctx: Any, between: ResultGradients, at: int, raw: torch.Tensor, *_: torch.Tensor
    ) -> torch.Tensor:
        ctx.between, ctx.at = between, at
        ctx.set_materialize_grads(False)
        return aten.alias.default(raw) if raw._is_view() else raw.detach()

    @staticmethod
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a model may ask for gradients amid its forward
    def backward(ctx: Any, gradient: torch.Tensor | None) -> Any:
        graph, _ = ctx.next_functions[0]
        return None, None, *ctx.between.flow_back(ctx.at, gradient, graph)


_behind: Callable[..., torch.Tensor] = _Behind.apply
