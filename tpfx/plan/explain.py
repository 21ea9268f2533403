"""Why a weight or an op is split as it is: what every other way would cost, all else chosen anew around it.

    print(explain(captured[0], 8, "layers.0.mlp.up_proj"))

Each way is priced by solving the whole graph again with that one decision fixed, exactly as it was solved
before. Costs are the chooser's: seconds of collectives and products, and a price on resident bytes.
"""

from __future__ import annotations

import difflib
import functools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from torch.fx import Node

from ..capture.graph import Captured
from ..dump.node_text import Lines
from ..errors import InputError
from ..formatting import bytes_text, seconds_text
from ..ir.annotations import bound_of, choice_of, is_weight, source_of
from ..ir.axes import show
from ..ir.layout import Partial, Split, carries
from ..ir.nodes import bytes_of
from ..ir.parallel_graph import ParallelGraph, Solution
from ..ir.provenance import source_line
from ..ir.resharding import COLLECTIVES
from ..passes.choose import Problem, State, returned_whole
from ..passes.context import Context
from ..passes.pipeline import infer_structures
from ..planning import Topology
from ..planning.marginals import marginals
from ..planning.pinned_layouts import match_pinned
from ..planning.variable_elimination import PRECISION, Factor, minimise
from ..planning.variable_elimination import Table as CostTable
from ..rules import is_random, rule_of
from ..torch_internals.fx import OpOverload
from .tables import rendered

log = logging.getLogger("tpfx")


@dataclass(frozen=True)
class Way:
    """One way to carry out an op, or to hold a weight.

    Attributes:
        text: what it is.
        chosen: whether it is the one in the plan.
        cost: seconds that the cheapest plan costs in which it is so.
        collectives: those of that plan: kind and count.
    """

    text: str
    chosen: bool
    cost: float
    collectives: dict[str, int]


class Price(NamedTuple):
    """One way to carry out an op, or to hold a weight, with what it costs.

    Attributes:
        words: what it is; "{axes}" in it are those of `split`.
        split: of the parallel graph.
        chosen: whether it is the one in the plan.
        more: how many seconds more than the cheapest plan the cheapest costs in which it is so.
    """

    words: str
    split: Split | None
    chosen: bool
    more: float

    def text(self, lines: Lines) -> str:
        """What it is, with letters of axes as other lines have them."""
        return self.words.format(axes=lines.axes_text(self.split) if self.split is not None else "")


@dataclass(frozen=True)
class Explanation:
    """What there is to say of one weight or op; `str(explanation)` is a text.

    Attributes:
        name: as in a dump.
        line: its line there.
        source: the line of the model's code, file:line.
        ways: all ways, the cheapest first.
        forced: for each collective that its value takes, who needs it and why.
    """

    name: str
    line: str
    source: str
    ways: list[Way]
    forced: list[str]

    def __str__(self) -> str:
        caption = "cost: seconds, and a price on the bytes that devices hold"
        table = Table(title="the ways, each in the cheapest plan that has it", caption=caption)
        table.title_justify = table.caption_justify = "left"
        for heading in ("way", "cost", "collectives"):
            table.add_column(heading, justify="right" if heading == "cost" else "left")
        least = self.ways[0].cost if self.ways else 0.0
        for way in self.ways:
            more = way.cost - least
            cost = seconds_text(least) if way.cost == least else f"+ {seconds_text(more)}"
            sent = ", ".join(f"{count} {kind}" for kind, count in way.collectives.items()) or "none"
            table.add_row(f"{way.text}{'  (chosen)' if way.chosen else ''}", cost, sent)
        place = [f"  at {self.source}"] if self.source else []
        head = [self.line, *place, *(f"  {why}" for why in self.forced)]
        return "\n".join([*head, "", rendered(table)])


class Explainer:
    """Explains the decisions of one captured graph; it is solved once, and again for each other way.

    Args:
        captured: the graph.
        parallel: what `plan_graphs` made of it.
        topology: what it was planned with.
    """

    def __init__(self, captured: Captured, parallel: ParallelGraph, topology: Topology | None = None) -> None:
        self.parallel = parallel
        module = captured.copy().module
        sources = [source_of(node) for node in parallel.graph.find_nodes(op="placeholder")]
        context = Context(parallel.ranks, topology or Topology())
        infer_structures(module.graph, sources, context)
        assert context.splits is not None
        match_pinned(module.graph, context.splits)
        self._module = module
        self._problem = Problem(module.graph, parallel.ranks, context.topology, context.splits)
        self._factors = list(self._problem.factors())
        self._sizes = [len(variable.states) for variable in self._problem.variables]
        self._nodes = {node.name: node for node in module.graph.nodes}
        self._lines = Lines(list(parallel.graph.nodes))

    def names(self) -> dict[str, Node]:
        """All that can be explained, by the names in dumps; weights by their full names too."""
        found: dict[str, Node] = {}
        for node in self.parallel.graph.nodes:
            if node.name in self._nodes and choice_of(node) is not None:
                found[self._lines.names[node]] = node
                if is_weight(node):
                    found.setdefault(source_of(node).name, node)
        return found

    def explain(self, name: str) -> Explanation:
        """Explain a weight or an op.

        Raises:
            InputError: there is none of that name.
        """
        known = self.names()
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "tpfx dump --unfold shows the names"
            raise InputError(f"the graph has no weight and no op {name}; {hint}")
        node = known[name]
        row = self._lines.input(node) if node.op == "placeholder" else self._lines.op(node)
        line = f"{row.name}  {row.type}" + (f"  = {row.expression}" if row.expression else "")
        line += f"  # {', '.join(row.comments)}" if row.comments else ""
        ways = sorted(self._ways(node), key=lambda way: way.cost)
        return Explanation(row.name, line, source_line(node), ways, list(self._forced(node)))

    def prices(self) -> dict[str, list[Price]]:
        """What every way of every decision costs, the cheapest first, by the names of the graph's nodes; of
        decisions that have one way alone, nothing. Empty where the graph is too large for it."""
        found = marginals(self._sizes, self._factors)
        if found is None:
            return {}
        return {
            node.name: prices
            for node in dict.fromkeys(self.names().values())
            if len(prices := self._prices(node, found)) > 1
        }

    def _prices(self, node: Node, found: Sequence[CostTable]) -> list[Price]:
        index, kinds = self._kinds(node)
        least, taken = self._base.cost, self._base.assignment[index]
        costs = {kind: float(found[index][members].min()) for kind, members in kinds.items()}
        ways = [
            Price(*kind, taken in kinds[kind], 0.0 if cost - least <= PRECISION * least else cost - least)
            for kind, cost in costs.items()
            if cost < np.inf
        ]
        return sorted(ways, key=lambda way: (way.more, not way.chosen))

    def _kinds(self, node: Node) -> tuple[int, dict[tuple[str, Split | None], list[int]]]:
        """The number of a node's decision, and its values, those that are said in the same words together."""
        index = self._problem.index[self._nodes[node.name]]
        kinds: dict[tuple[str, Split | None], list[int]] = {}
        for at, state in enumerate(self._problem.variables[index].states):
            kinds.setdefault(self._words(state), []).append(at)
        return index, kinds

    def _ways(self, node: Node) -> Iterator[Way]:
        index, kinds = self._kinds(node)
        for kind, members in kinds.items():
            fixed = np.full(self._sizes[index], np.inf)
            fixed[members] = 0.0
            taken = self._base.assignment[index] in members
            solution = self._base if taken else self._solved(Factor((index,), fixed))
            if solution is not None:
                text = Price(*kind, taken, 0.0).text(self._lines)
                yield Way(text, taken, solution.cost, self._collectives(solution.assignment))

    def _solved(self, *fixed: Factor) -> Solution | None:
        """The cheapest plan; None where what is fixed contradicts all else."""
        try:
            return minimise(self._sizes, [*self._factors, *fixed])
        except ValueError as contradiction:
            log.debug("not a way: %s", contradiction)
            return None

    @functools.cached_property
    def _base(self) -> Solution:
        found = self._solved()
        assert found is not None, "the graph was planned"
        return found

    def _words(self, state: State) -> tuple[str, Split | None]:
        """A choice as the words and the split of a `Price`: split along axes, or whole, or a partial sum."""
        layouts = (*state.choice.operands, *state.choice.results)
        split = next((layout for layout in layouts if isinstance(layout, Split)), None)
        if state.choice.kind == "pending":
            return "carries a partial sum on", None
        if split is None:
            return "whole", None
        same = list(self.parallel.splits)[list(self._problem.splits).index(split)]  # with the line's letters
        row = any(isinstance(layout, Partial) for layout in state.choice.results)
        return f"split along {{axes}}{'; a partial sum' if row else ''}", same

    def _collectives(self, assignment: Sequence[int]) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for variable, value in zip(self._problem.variables, assignment, strict=True):
            state = variable.states[value]
            if state.whole:
                counts["all_reduce" if isinstance(state.result, Partial) else "all_gather"] += 1
            elif isinstance(state.result, Split) and returned_whole(variable.node):
                counts["gather"] += 1
        return dict(counts)

    def _forced(self, node: Node) -> Iterator[str]:
        """For each collective that brings this value to whoever needs it whole, who that is, and why."""
        names = self._lines.names
        for collective in node.users:
            if collective.target not in COLLECTIVES:
                continue
            layout = collective.args[1]
            size = bytes_text(bytes_of(collective.meta["val"]))
            for user in collective.users:
                who = "the caller" if user.op == "output" else names[user]
                kind = COLLECTIVES[collective.target]
                yield f"{kind} ({size}) for {who}: {_reason(user, collective, layout)}"


def _reason(user: Node, value: Node, layout: Any) -> str:
    """Why an op needs a value whole that lies split, or as partial sums."""
    choice, bound = choice_of(user), bound_of(user)
    if user.op == "output":
        return "it takes no partial sums" if isinstance(layout, Partial) else "it takes it whole"
    if bound is None or choice is None:
        return "it moves it on"
    if is_random(user):
        return "it draws random numbers, on one rank for all"
    if isinstance(user.target, OpOverload) and rule_of(user) is None:
        return "it has no rule, and runs whole"
    if isinstance(layout, Partial):
        return "its other operands are no partial sums" if bound.linear else "it is not linear in it"
    held = [dim for dim in bound.whole if isinstance(layout, Split) and carries(dim, layout)]
    if held:
        return f"its rule needs {', '.join(show(held))} whole"
    return (
        "it is split along another axis" if choice.kind == "split" else "dividing it as well would cost more"
    )
