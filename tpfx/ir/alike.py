"""Layers that are alike in one of Dynamo's graphs: the same calls one after another, on inputs of their own.

    found = find_alike(graph)        # None, or a run of them
    found.count, found.period        # 31 layers of 57 nodes
    found.others[4].inputs           # the inputs of the third layer → those of the fifth

The third of them (BASE) stands for all after it: what the first one makes the later ones may share, and what
a layer takes from the one before it, the third takes from the second, as the fourth does from the third.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter
from typing import Any

import sympy
import torch
from torch.fx import Graph, Node

from ..torch_internals.fake import expression

BASE = 2  # which of the layers stands for those after it
WORTH = 64  # so many nodes must be spared
_TRIED = 6  # periods


@dataclass
class Other:
    """How a layer differs from the base: its inputs, and the sizes that vary in them."""

    inputs: dict[Node, Node] = field(default_factory=dict)
    symbols: dict[sympy.Symbol, sympy.Symbol] = field(default_factory=dict)

    @property
    def renaming(self) -> dict[sympy.Symbol, sympy.Symbol]:
        """The sizes that are others."""
        return {one: other for one, other in self.symbols.items() if one != other}

    def with_sizes(self, sizes: Mapping[sympy.Symbol, Node]) -> Other:
        """The same, and the inputs that are sizes which vary, by these."""
        inputs = {
            sizes[one]: sizes[other] for one, other in self.symbols.items() if {one, other} <= sizes.keys()
        }
        return Other(inputs | self.inputs, self.symbols)

    def in_inputs(self, made: Mapping[Node, Node]) -> Other:
        """The same of another graph, given its inputs by those of this one."""
        return Other({made[one]: made[other] for one, other in self.inputs.items()}, dict(self.symbols))


@dataclass(frozen=True)
class Alike:
    """A run of layers that are alike.

    Attributes:
        places: the nodes of the graph but for its inputs and results, in order: node → place.
        body: the same, by their places.
        start: the place of the first node of the first layer.
        period: how many nodes a layer has.
        others: of each layer but the first, how it differs from the base.
    """

    places: dict[Node, int]
    body: Sequence[Node]
    start: int
    period: int
    others: dict[int, Other]

    @property
    def count(self) -> int:
        """How many layers there are."""
        return len(self.others) + 1

    def layer_of(self, place: int) -> int:
        """The layer to which a node belongs, by its place; -1 before them, `count` after them."""
        return max(-1, min((place - self.start) // self.period, self.count))

    def is_left_out(self, place: int) -> bool:
        """Whether the base stands for the layer of a node."""
        return BASE < self.layer_of(place) < self.count

    def in_layer(self, place: int, layer: int) -> Node:
        """The node at a place, as it is in another layer."""
        return self.body[place + (layer - self.layer_of(place)) * self.period]


def find_alike(graph: Graph) -> Alike | None:
    """The longest run of layers that are alike, where it spares enough."""
    body = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    run = _longest_run([_kind(node) for node in body])
    if run is None:
        return None
    places = {node: at for at, node in enumerate(body)}
    start, period, count = _between_layers(body, places, *run)
    sizes = _open_sizes(graph)
    others: dict[int, Other] = {}
    for layer in range(1, count):
        pair = _Pair(places, start + period, (layer - BASE) * period)
        comparison = Comparison("example_value", pair.holds, Other())
        base = body[start + BASE * period : start + (BASE + 1) * period]
        other = body[start + layer * period : start + (layer + 1) * period]
        if not comparison.holds(base, other):
            break
        others[layer] = comparison.other.with_sizes(sizes)
    if (len(others) - BASE) * period < WORTH:
        return None
    return Alike(places, body, start, period, others)


def _open_sizes(graph: Graph) -> dict[sympy.Symbol, Node]:
    """The inputs that are sizes: what they are in shapes → the first such input."""
    sizes: dict[sympy.Symbol, Node] = {}
    for node in graph.find_nodes(op="placeholder"):
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymInt):
            sizes.setdefault(expression(value), node)
    return sizes


def _kind(node: Node) -> Any:
    """What a node does, but for what it does it to."""
    value = node.meta.get("example_value")
    rank = value.dim() if isinstance(value, torch.Tensor) else type(value)
    return node.op, node.target, rank, len(node.args), tuple(node.kwargs)


def _longest_run(kinds: Sequence[Any]) -> tuple[int, int, int] | None:
    """Where nodes are of the same kinds again and again: the place of the first, the period, how often."""
    places: dict[Any, list[int]] = {}
    for at, kind in enumerate(kinds):
        places.setdefault(kind, []).append(at)
    periods = Counter(after - before for known in places.values() for before, after in pairwise(known))
    for known in places.values():  # a layer has most kinds of nodes several times
        periods.update(
            after - before for step in (2, 4) for before, after in zip(known, known[step:], strict=False)
        )
    best, spared = None, 0
    for period in sorted(periods, key=lambda one: -periods[one] * one)[:_TRIED]:
        for start, length in _runs(kinds, period):
            count = length // period + 1
            if (count - BASE - 1) * period > spared:
                best, spared = (start, period, count), (count - BASE - 1) * period
    return best


def _between_layers(
    body: Sequence[Node], places: dict[Node, int], start: int, period: int, count: int
) -> tuple[int, int, int]:
    """The same run, one layer less, from where the fewest values go on from one layer to the next."""
    first = start + BASE * period
    crossing = [0] * (2 * period + 1)  # for each place from `first` on, the values that go on beyond it
    for at in range(first, min(first + period, len(body))):
        last = max((places[user] for user in body[at].users if user in places), default=at)
        for place in range(at + 1, min(last, at + period) + 1):
            crossing[place - first] += 1
    folded = [crossing[at] + crossing[at + period] for at in range(period)]
    shift = folded.index(min(folded))
    return start + shift, period, count - (shift > 0)


def _runs(kinds: Sequence[Any], period: int) -> Iterator[tuple[int, int]]:
    """Where, and for how many nodes, each is of the kind of that a period later."""
    start = None
    for at in range(len(kinds) - period + 1):
        same = at + period < len(kinds) and kinds[at] == kinds[at + period]
        if same and start is None:
            start = at
        elif not same and start is not None:
            yield start, at - start
            start = None


@dataclass(frozen=True)
class _Pair:
    """Whether a node is to another layer what one is to the base: the same, or as many layers away."""

    places: dict[Node, int]
    second: int  # the place of the first node of the second layer
    shift: int

    def holds(self, base: Node, other: Node) -> bool:
        before, after = self.places[base], self.places[other]
        return before == after if before < self.second else after == before + self.shift


class Comparison:
    """Whether nodes do the same as those of the base do, on other inputs.

    Args:
        key: of the meta that has a node's value.
        pair: whether one node is to the others what one is to the base.
        other: how they differ, as far as it is known; what is found is added.
        target_of: what a node calls or refers to.
    """

    def __init__(
        self,
        key: str,
        pair: Callable[[Node, Node], bool],
        other: Other,
        target_of: Callable[[Node], Any] = attrgetter("target"),
    ) -> None:
        self.key, self.pair, self.other, self.target_of = key, pair, other, target_of
        known = (*other.inputs.items(), *other.symbols.items())
        self.taken: dict[Any, Any] = {own: base for base, own in known}

    def holds(self, bases: Sequence[Node], others: Sequence[Node]) -> bool:
        """Whether each does the same as that of the base in its place."""
        return len(bases) == len(others) and all(map(self._does_the_same, bases, others))

    def _does_the_same(self, base: Node, other: Node) -> bool:
        called = base.op == other.op and self.target_of(base) == self.target_of(other)
        given = (base.args, base.kwargs), (other.args, other.kwargs)
        return called and self._same(*given) and self._same_value(*self._values(base, other))

    def _values(self, *nodes: Node) -> Iterator[Any]:
        return (node.meta.get(self.key) for node in nodes)

    def _same(self, base: Any, other: Any) -> bool:
        if type(base) is not type(other):
            return False
        if isinstance(base, Node):
            return self._same_node(base, other)
        if isinstance(base, (tuple, list)):
            return len(base) == len(other) and all(map(self._same, base, other))
        if isinstance(base, dict):
            return base.keys() == other.keys() and all(self._same(base[key], other[key]) for key in base)
        if isinstance(base, slice):
            return self._same((base.start, base.stop, base.step), (other.start, other.stop, other.step))
        return bool(base == other)

    def _same_node(self, base: Node, other: Node) -> bool:
        if base.op != other.op and "placeholder" in (base.op, other.op):
            return False
        if base.op == "placeholder":
            paired = self._paired(self.other.inputs, base, other)
            return paired and self._same_value(*self._values(base, other))
        return self.pair(base, other)

    def _paired(self, known: dict[Any, Any], base: Any, other: Any) -> bool:
        """Whether two have always been in each other's place."""
        return bool(known.setdefault(base, other) == other and self.taken.setdefault(other, base) == base)

    def _same_value(self, base: Any, other: Any) -> bool:
        if type(base) is not type(other):
            return False
        if isinstance(base, (tuple, list)):
            return len(base) == len(other) and all(map(self._same_value, base, other))
        if isinstance(base, torch.SymInt):
            return self._same_size(base, other)
        if isinstance(base, torch.Tensor):
            return _described(base) == _described(other) and all(
                map(self._same_size, _extents(base), _extents(other))
            )
        return bool(base == other)

    def _same_size(self, base: Any, other: Any) -> bool:
        left, right = expression(base), expression(other)
        if isinstance(left, int) or isinstance(right, int):
            return bool(left == right)
        known = self.other.symbols
        if isinstance(left, sympy.Symbol) and isinstance(right, sympy.Symbol):
            return self._paired(known, left, right)
        new = left.free_symbols - known.keys()  # sizes that come with no input of their own are shared
        return all(self._paired(known, one, one) for one in new) and bool(left.xreplace(known) == right)


def _extents(value: torch.Tensor) -> tuple[Any, ...]:
    return (*value.shape, *value.stride(), value.storage_offset())


def _described(value: torch.Tensor) -> tuple[Any, ...]:
    return value.dim(), value.dtype, value.device, value.layout, value.requires_grad, type(value)
