"""Choose, for every op at once, the cheapest way to carry it out.

One variable an op: its choice, and whether its result is also made available whole. One table an edge: what
the user needs, the producer must offer. `CostModel` says what each state costs; the sum is minimised exactly,
by `variable_elimination`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
from torch.fx import Graph, Node

from ..ir.annotations import (
    Choice,
    bound_of,
    dims_of,
    is_weight,
    returned_as,
    set_choice,
    set_layout,
    source_of,
)
from ..ir.layout import Layout, Partial, Replicate, Split, splittable, unfold
from ..ir.nodes import (
    bytes_of,
    is_getitem,
    is_mutable,
    is_tensor,
    is_view,
    producer_of,
    result_index,
    tensor_nodes,
)
from ..ir.parallel_graph import Solution
from ..ir.splits import Splits
from ..planning import Topology
from ..planning.alike_ops import AlikeOps
from ..planning.choices import REPLICATE, options
from ..planning.cost import CostModel
from ..planning.pinned_layouts import pinned_layout
from ..planning.variable_elimination import Factor, Table, minimise


@dataclass(frozen=True)
class State:
    """One value of a variable: a choice, and whether the result is made available whole as well."""

    choice: Choice
    result: Layout
    whole: bool
    cost: float


@dataclass
class Variable:
    """The states of one op, of one result of an op that has several, or of one input."""

    node: Node
    states: list[State] = field(default_factory=list)


def choose(graph: Graph, ranks: int, topology: Topology, splits: Splits) -> Solution:
    """Record a choice for every op and a layout for every tensor; returns the solution that they are from."""
    problem = Problem(graph, ranks, topology, splits)
    factors = list(problem.factors())
    solution = minimise([len(variable.states) for variable in problem.variables], factors)
    for variable, value in zip(problem.variables, solution.assignment, strict=True):
        state = variable.states[value]
        set_choice(variable.node, state.choice)
        if is_tensor(variable.node):
            set_layout(variable.node, state.result)
    return solution


def is_decided(node: Node) -> bool:
    """Whether there is anything to choose for a node: whatever is, or makes, a tensor."""
    if node.op == "placeholder" or is_getitem(node):
        return is_tensor(node)
    return node.op == "get_attr" or bound_of(node) is not None


class Problem:
    """The variables and tables of one graph."""

    def __init__(self, graph: Graph, ranks: int, topology: Topology, splits: Splits) -> None:
        self.graph, self.splits = graph, splits
        self.cost = CostModel(graph, ranks, topology)
        self.alike = AlikeOps(splits, self.cost.sizes)
        self._seen: dict[Hashable, tuple[list[Split], list[State]]] = {}  # the states of ops that are alike
        self._tables: dict[Hashable, Table] = {}  # those of edges, by how the layouts at their ends relate
        self.index: dict[Node, int] = {}
        self.variables: list[Variable] = []
        partials: set[Node] = set()
        for node in graph.nodes:
            states = self._states(node, partials)
            if states:
                self.index[node] = len(self.variables)
                self.variables.append(Variable(node, states))
                if any(isinstance(layout, Partial) for state in states for layout in state.choice.results):
                    partials.add(node)

    def _states(self, node: Node, partials: Set[Node]) -> list[State]:
        if not is_decided(node):
            return []
        if node.op == "placeholder":
            return list(self._input_states(node))
        if is_getitem(node):
            return list(self._item_states(node))
        if node.op == "get_attr":
            return [State(Choice("whole", (), (REPLICATE,)), REPLICATE, False, 0.0)]
        likeness, own = self.alike.of(node, partials)
        key = likeness, returned_as(node)[0], returned_whole(node)
        if key not in self._seen:
            choices = options(node, self.splits, partials)
            self._seen[key] = own, [state for choice in choices for state in self._op_states(node, choice)]
        return _on(own, *self._seen[key])

    def _input_states(self, node: Node) -> Iterator[State]:
        layouts: list[Layout] = [REPLICATE]
        pinned = pinned_layout(node, self.splits)
        if pinned is not None:
            layouts = [pinned]
        elif source_of(node).kind != "input":
            dims = dims_of(node)
            layouts += [split for split in self.splits.of([dims]) if splittable(dims, split)]
        is_open = is_weight(node) and pinned is None
        for layout in layouts:
            cost = self.cost.resident(node, layout) if is_open else 0.0
            yield from self._available(node, Choice("input", (), (layout,)), layout, cost)

    def _item_states(self, node: Node) -> Iterator[State]:
        index = result_index(node)
        states = self.variables[self.index[producer_of(node)]].states
        for layout in dict.fromkeys(state.choice.results[index] for state in states):
            choice = Choice("item", (), (layout,))
            yield from self._available(node, choice, layout, 0.0)

    def _op_states(self, node: Node, choice: Choice) -> Iterator[State]:
        cost = self.cost.op_price(node, choice)
        if len(choice.results) == 1 and is_tensor(node):
            yield from self._available(node, choice, choice.results[0], cost)
        else:
            yield State(choice, REPLICATE, False, cost)

    def _available(self, node: Node, choice: Choice, layout: Layout, cost: float) -> Iterator[State]:
        if not self._returnable(node, layout):
            for_caller = isinstance(layout, Partial) and returned_whole(node)
            dearer = self.cost.weights.for_caller if for_caller else 1.0
            yield State(choice, layout, True, cost + dearer * self.cost.whole(node, layout))
            return
        is_gathered_for_caller = isinstance(layout, Split) and returned_whole(node)
        joined = self.cost.collective("gather", bytes_of(node.meta["val"])) if is_gathered_for_caller else 0.0
        yield State(choice, layout, False, cost + joined)
        if not isinstance(layout, Replicate):
            yield State(choice, layout, True, cost + self.cost.whole(node, layout))

    def _returnable(self, node: Node, layout: Layout) -> bool:
        """Whether a value may leave the graph as it is; partial sums and shards of a varying size may not."""
        if not returned_as(node)[0]:
            return True
        match layout:
            case Replicate():
                return True
            case Partial():
                return False
            case Split():
                return not unfold(dims_of(node), layout)[1]

    def factors(self) -> Iterator[Factor]:
        """The tables: one a variable, one an edge."""
        for index, variable in enumerate(self.variables):
            yield Factor((index,), np.array([state.cost for state in variable.states]))
            node = variable.node
            if is_getitem(node):
                yield self._item_factor(node, index)
                continue
            uses: dict[Node, list[int]] = {}
            for position, operand in enumerate(tensor_nodes(node)):
                uses.setdefault(operand, []).append(position)
            for operand, positions in uses.items():
                yield self._edge(self.index[operand], index, positions)
        yield from self._gradient_factors()

    def _gradient_factors(self) -> Iterator[Factor]:
        """A gradient is laid out as its weight."""
        for node, above in self.index.items():
            for weight in returned_as(node)[1]:
                below = self.index[weight]
                table = [
                    [0.0 if _offers(offer, need.result) else np.inf for need in self.variables[below].states]
                    for offer in self.variables[above].states
                ]
                if above != below:
                    yield Factor((above, below), np.array(table))

    def _item_factor(self, node: Node, index: int) -> Factor:
        above, at = self.index[producer_of(node)], result_index(node)
        table = [
            [
                0.0 if offer.choice.results[at] == state.result else np.inf
                for state in self.variables[index].states
            ]
            for offer in self.variables[above].states
        ]
        return Factor((above, index), np.array(table))

    def _edge(self, above: int, below: int, positions: list[int]) -> Factor:
        written = positions[0] == 0 and is_mutable(self.variables[below].node)
        meets = _is if written else _offers
        offers = self.variables[above].states
        needs = [[need.choice.operands[at] for at in positions] for need in self.variables[below].states]
        key = written, _related(offers, needs)
        if key not in self._tables:
            table = [
                [0.0 if all(meets(offer, layout) for layout in need) else np.inf for need in needs]
                for offer in offers
            ]
            self._tables[key] = np.array(table)
        return Factor((above, below), self._tables[key])


def _on(own: list[Split], others: list[Split], states: list[State]) -> list[State]:
    """The states of an op that is alike, on its own splits."""
    if own == others:
        return states
    place: dict[Layout, Layout] = dict(zip(others, own, strict=True))

    def put(layout: Layout) -> Layout:
        return place.get(layout, layout)

    choices = {
        id(one.choice): Choice(
            one.choice.kind, tuple(map(put, one.choice.operands)), tuple(map(put, one.choice.results))
        )
        for one in states
    }
    return [State(choices[id(one.choice)], put(one.result), one.whole, one.cost) for one in states]


def _related(offers: Sequence[State], needs: Sequence[Sequence[Layout]]) -> Hashable:
    """What the table of an edge depends on: which layouts at its ends are the same."""
    numbers: dict[Layout, Layout | int] = {}

    def number(layout: Layout) -> Layout | int:
        return numbers.setdefault(layout, len(numbers)) if isinstance(layout, Split) else layout

    given = tuple((number(offer.result), offer.whole) for offer in offers)
    return given, tuple(tuple(map(number, need)) for need in needs)


def _is(state: State, need: Layout) -> bool:
    """Whether a value has the layout itself: what is written to must not be a copy."""
    return state.result == need


def _offers(state: State, need: Layout) -> bool:
    """Whether a value in this state can be had as needed: as it is, or made of the whole by each rank."""
    return state.result == need or state.whole or isinstance(state.result, Replicate)


def returned_whole(node: Node) -> bool:
    """Whether the caller gets a value whole: what a graph returns and does not use itself, logits say.

    What it also uses is state (keys and values), and so is a view of that (the last of a sliding window): it
    stays as it is, and is gathered only if someone looks at it.
    """
    result, gradient = returned_as(node)
    return result and not gradient and not _used(node)


def _used(node: Node) -> bool:
    """Whether a graph computes with a value that it returns, or with that of which it is a view."""
    view: Node | None = None
    while not any(user.op != "output" and user is not view for user in node.users):
        if not is_view(node):
            return False
        view, node = node, node.all_input_nodes[0]
    return True
