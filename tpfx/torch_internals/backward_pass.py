"""A backward pass as it runs: which one it is, what it goes through, who looks at a gradient on its way.

task = current_pass()                # a number; it lasts until the pass is over
passes_through(node)                 # whether this pass runs one of autograd's nodes
ASKED.of(tensor.grad_fn)             # whether `torch.autograd.grad` asks for the gradient of a node's result
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.graph import Node

from .effects import Effect, replace_in


def keeps_graph() -> bool:
    """Whether the backward that runs now leaves what is saved for another one (`retain_graph`)."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def current_pass() -> int:
    """Which backward pass runs in this thread."""
    return int(torch._C._current_graph_task_id())


def saved_by_others() -> bool:
    """Whether hooks take what is saved for a backward, as inside of a checkpoint and of its recomputation."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def passes_through(node: Node) -> bool:
    """Whether the backward that runs now runs a node, or is asked for the gradient of its results."""
    return bool(torch._C._will_engine_execute_node(node))


def hooks_on(result: torch.Tensor) -> Callable[[], Any]:
    """The table of the hooks that are registered on a tensor with a history, as long as its node lives."""
    table = OrderedDict[Any, Any]()
    result._backward_hooks = table
    result.grad_fn._register_hook_dict(result)  # type: ignore[union-attr]  # as `register_hook` does
    return weakref.ref(table)


class _Asked:
    """The nodes whose gradients are asked for, by the `inputs` of backwards that run now."""

    def __init__(self) -> None:
        self._nodes: list[set[Any]] = []
        self._lock = threading.Lock()

    def of(self, node: Node | None) -> bool:
        """Whether the gradient of a result of a node is asked for."""
        return any(node in nodes for nodes in list(self._nodes))

    @contextmanager
    def during(self, inputs: Any) -> Iterator[None]:
        """While a backward runs, which is given these `inputs`."""
        nodes = {getattr(one, "grad_fn", None) or getattr(one, "node", None) for one in inputs}
        with self._lock:
            self._nodes.append(nodes)
        try:
            yield
        finally:
            with self._lock:
                self._nodes[:] = [one for one in self._nodes if one is not nodes]


ASKED = _Asked()


def note_what_is_asked() -> Effect:
    """`ASKED` knows what `backward(inputs=...)` and `torch.autograd.grad` are given."""

    def change(run: Callable[..., Any]) -> Callable[..., Any]:
        def noting(
            tensors: Any, gradients: Any, keep: bool, create: bool, inputs: Any, *rest: Any, **named: Any
        ) -> Any:
            if not inputs:
                return run(tensors, gradients, keep, create, inputs, *rest, **named)
            with ASKED.during(inputs):
                return run(tensors, gradients, keep, create, inputs, *rest, **named)

        return noting

    return Effect(
        "what backwards are asked for",
        lambda: replace_in(vars(torch.autograd), "_engine_run_backward", change),
    )
