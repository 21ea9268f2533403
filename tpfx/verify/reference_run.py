"""Run graphs node by node and keep every value: as captured, on whole tensors, and on a rank.

reference = Reference(captured, parallel, args, state)     # runs the parallel graph, undivided
reference.values["linear_3"]
reference.difference(node, value, expected)                # None, or in words
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Interpreter, Node

from ..ir.provenance import represents
from ..ir.resharding import all_gather, all_reduce, shard, to_partial
from .tolerance import TOLERANCE, difference, distance

UNITS = 8  # in the last place: what inputs are changed by to see how much of a value is rounding errors
MARGIN = 10.0  # times what that changes is not called a difference

_MARKERS = (all_reduce, all_gather, shard, to_partial)


class ValueRecorder(Interpreter):
    """Runs a graph and keeps a copy of every value, by name, as it was when it was computed.

    Memory that an op leaves as it is holds zeros, so that two runs can be compared.
    """

    def __init__(self, module: torch.nn.Module, graph: Graph | None = None) -> None:
        super().__init__(module, graph=graph)
        self.values: dict[str, Any] = {}
        self.failed: Node | None = None
        self.error: Exception | None = None

    def names(self, node: Node) -> Sequence[str]:
        """The names under which a node's value is kept."""
        return (node.name,)

    def run_node(self, n: Node) -> Any:
        """Run one node and keep a copy of what it returns."""
        try:
            result = super().run_node(n)
        except Exception as error:
            self.failed, self.error = n, error
            raise
        if "empty" in str(n.target) and isinstance(result, torch.Tensor):
            result.zero_()
        if n.op != "output":
            for name in self.names(n):
                self.values[name] = clone_value(result)
        return result


class LocalRecorder(ValueRecorder):
    """Runs a rank's graph; what it keeps goes by the names of the parallel graph."""

    def names(self, node: Node) -> Sequence[str]:
        """The nodes of the parallel graph that this one stands for."""
        return represents(node)


class WholeRecorder(ValueRecorder):
    """Runs a parallel graph on whole tensors, for which its collectives are nothing to do."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an op, or pass on the value that a collective moves."""
        return args[0] if target in _MARKERS else super().call_function(target, args, kwargs)


class Reference:
    """The values that a split graph should have: those of its parallel graph on whole tensors.

    Args:
        root: what the graph's constants are taken from.
        graph: the parallel graph.
        args: its inputs, which stay as they are.
        state: the state of the random numbers at its start.
    """

    def __init__(self, root: GraphModule, graph: Graph, args: Sequence[Any], state: torch.Tensor) -> None:
        self._graph, self._args, self._state = graph, [clone_value(arg) for arg in args], state
        self.recorder = WholeRecorder(root, graph)

    def run(self) -> None:
        """Compute the values; `recorder` knows where, if it raises."""
        with drawing_from(self._state):
            self.recorder.run(*map(clone_value, self._args))

    def __getitem__(self, name: str) -> Any:
        return self.recorder.values[name]

    def difference(self, node: Node, value: Any, expected: Any) -> str | None:
        """How a value of a node differs from what is expected, by more than its rounding errors.

        Some values are nothing but such errors, as the gradient of a bias that a norm takes away again.
        """
        text = difference(value, expected)
        return text and difference(value, expected, self._noise.get(node.name, 0.0))

    @cached_property
    def _noise(self) -> dict[str, float]:
        """How far each value is off if the inputs are rounded otherwise."""
        generator = torch.Generator().manual_seed(0)
        other = WholeRecorder(self.recorder.module, self._graph)
        with drawing_from(self._state):
            other.run(*(_rounded(arg, generator) for arg in self._args))
        return {
            name: MARGIN * distance(value, other.values[name])
            for name, value in self.recorder.values.items()
            if isinstance(value, torch.Tensor) and value.dtype in TOLERANCE
        }


def clone_value(value: Any) -> Any:
    """A tensor in memory of its own; anything else as it is."""
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


@contextmanager
def drawing_from(state: torch.Tensor) -> Iterator[None]:
    """Draw the random numbers that come after a state, and leave those of the caller as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(state)
        yield


def _rounded(value: Any, generator: torch.Generator) -> Any:
    """A tensor whose numbers are a few units in the last place larger or smaller."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return clone_value(value)
    signs = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
    return value + value * (signs * UNITS * torch.finfo(value.dtype).eps)
