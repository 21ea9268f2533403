"""Rule truth: run every split that an op's rule allows, and compare with the op run whole.

What a rank is given lies in memory in another order than what the whole op was given, as in a model it may.

    check_rule(torch.ops.aten.mm.default, x, weight, dims=("m:2 (h:4 d:8)", "[a:16|b:16] n:6"))

A rule that lets something be split that the op needs whole, or passes on a partial sum where the op is not
linear, gives wrong numbers in a model. Here it raises `UntrueRuleError`, which says which split showed it.
"""

from __future__ import annotations

import itertools
import operator
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Interpreter, Node

from ..errors import RuleError
from ..ir.annotations import Choice, bound_of, dims_of, set_choice, set_dims, set_layout
from ..ir.axes import Dim, Product, axes, factors, find, show, unify
from ..ir.axes_text import read
from ..ir.layout import Layout, Partial, Split
from ..ir.nodes import is_tensor, result_index, size_of, tensor_nodes
from ..ir.op_dims import Bound, Dims
from ..ir.shards import concrete
from ..kernels.collectives import combine_partials
from ..kernels.slices import take
from ..passes.localize import localize
from ..planning.choices import PARTIAL_SUM, REPLICATE, split_choice
from ..rules import Rule, rule_for
from ..rules.bind import bind
from ..torch_internals.fake import fakes_of_known_sizes
from ..torch_internals.fx import overload_of
from .tolerance import TOLERANCE


class UntrueRuleError(RuleError):
    """An op split as its rule allows gives another result than the op run whole."""


def check_rule(
    op: Any,
    *args: Any,
    rule: Rule | None = None,
    dims: Sequence[str | None] = (),
    late: bool = False,
    dense: bool = False,
    values: bool | Collection[int] = True,
    ranks: Sequence[int] = (2, 3),
    seed: int = 0,
    **kwargs: Any,
) -> int:
    """Run an op in every split that its rule allows, unevenly, and with every partial sum that it passes on.

    Args:
        op: an op as it stands in ATen graphs, `torch.ops.aten.mm.default`, or of `torch.library`.
        args: its arguments; tensors are real ones, best in float64.
        rule: the row to check, where it is not the one that is registered.
        dims: for each tensor argument its dimensions, as `axes_text.read` takes them; None: nothing known.
        late: whether that becomes known only after the op was seen, by an op that follows.
        dense: give each rank contiguous copies of its shards, for ops that go by strides; other ops are given
            them with their dimensions in any order in memory.
        values: compare values, of all results or of those of these numbers; of others shapes and types,
            for ops that leave memory as it is.
        ranks: the numbers of ranks to divide over; each in a division of its own and one with an idle rank.
        seed: of the divisions and the partial sums.
        kwargs: the op's keyword arguments.

    Returns:
        How many divisions and partial sums were run: 0 for a rule that allows nothing. A test of a rule
        should assert that this is not 0: a rule of which nothing was run has not been checked.

    Raises:
        UntrueRuleError: a rank's result is not what the rule says, or a rank raises.

    >>> check_rule(torch.ops.aten.cumsum.default, torch.ones(4, 6), 1, rule=Rule("m k -> m k"))
    tpfx.UntrueRuleError: aten.cumsum.default, split b:6 as (4, 2), …
    """
    op = overload_of(op) or op
    rule = rule or rule_for(op)
    if rule is None:
        raise UntrueRuleError(f"{op} has no rule: register one, or pass it as rule=…")
    trial = _Trial.of(op, rule, args, kwargs, dims, late)
    trial.dense, trial.values, trial.random = dense, values, random.Random(seed)
    trial.run(trial.whole, None, 1)
    return sum(trial.run(choice, split, count) for choice, split, count in trial.choices(ranks))


@dataclass
class _Trial:
    """One call of an op, as a graph of its own, and what the op returns for it when run whole."""

    graph: Graph
    node: Node
    inputs: list[torch.Tensor]
    expected: list[torch.Tensor]
    dense: bool = False
    values: bool | Collection[int] = True
    known: bool = True  # of the result that is compared now, its values
    random: random.Random = field(default_factory=random.Random)

    @classmethod
    def of(
        cls, op: Any, rule: Rule, args: Any, kwargs: Any, dims: Sequence[str | None], late: bool
    ) -> _Trial:
        inputs: list[torch.Tensor] = list(_tensors([*args, *kwargs.values()]))
        expected = list(_tensors([op(*_map(args, torch.clone), **_map(kwargs, torch.clone))]))
        graph, node = _graph(op, args, kwargs)
        _infer(node, rule, dims, late)
        for item in _items(node):
            bound = bound_of(node)
            assert bound is not None
            set_dims(item, bound.results[result_index(item)])
        return cls(graph, node, inputs, expected)

    @property
    def bound(self) -> Bound:
        bound = bound_of(self.node)
        assert bound is not None
        return bound

    @property
    def whole(self) -> Choice:
        """The op on whole operands: a rank may have them in another order in memory."""
        return Choice(
            "whole", (REPLICATE,) * len(self.bound.operands), (REPLICATE,) * len(self.bound.results)
        )

    def choices(self, ranks: Sequence[int]) -> Iterator[tuple[Choice, Split | None, int]]:
        """Every way to carry out the op but running it whole, over so many ranks."""
        tensors = [*self.bound.operands, *self.bound.results]
        for key in _keys(tensors):
            for count in ranks:
                for sizes in _divisions(Split(key), count, self.random):
                    split = Split(key)
                    split.divide(sizes)
                    choice = split_choice(self.bound, split)
                    if choice is not None:
                        yield choice, split, count
        for linear in self.bound.linear:
            if max(linear) < len(self.inputs) and all(_adds(self.inputs[index]) for index in linear):
                needs = tuple(
                    PARTIAL_SUM if index in linear else REPLICATE for index in range(len(self.inputs))
                )
                for count in ranks:
                    yield Choice("pending", needs, (PARTIAL_SUM,) * len(self.bound.results)), None, count

    def run(self, choice: Choice, split: Split | None, ranks: int) -> int:
        """Run every rank and compare; 1, so that runs can be counted."""
        self._annotate(choice)
        nodes = list(tensor_nodes(self.node))
        held = [self._held(*one, ranks) for one in zip(nodes, self.inputs, choice.operands, strict=True)]
        what = self._describe(choice, split, ranks)
        results: list[list[torch.Tensor]] = []
        for rank in range(ranks):
            local = Interpreter(torch.nn.Module(), graph=localize(self.graph, rank, ranks, "none", rank == 0))
            try:
                results.append(list(local.run(*(self._in_memory(own[rank]) for own in held))))
            except Exception as error:
                raise UntrueRuleError(
                    f"{what}: rank {rank} raised {type(error).__name__}: {error}"
                ) from error
        for index, layout in enumerate(choice.results):
            made = [result[index] for result in results]
            self.known = self.values if isinstance(self.values, bool) else index in self.values
            self._compare(what, made, self.expected[index], self.bound.results[index], layout)
        return 1

    def _in_memory(self, value: torch.Tensor) -> torch.Tensor:
        """A copy, whose dimensions lie in any order, as those of what collectives and other ops give do."""
        if self.dense or min(value.shape, default=0) < 2:  # what is of size 1 has no place in an order
            return value.clone(memory_format=torch.contiguous_format)
        order = self.random.sample(range(value.dim()), value.dim())
        back = sorted(range(value.dim()), key=order.__getitem__)
        return value.permute(order).clone(memory_format=torch.contiguous_format).permute(back)

    def _annotate(self, choice: Choice) -> None:
        for operand, layout in zip(tensor_nodes(self.node), choice.operands, strict=True):
            set_layout(operand, layout)
        set_choice(self.node, choice)
        if is_tensor(self.node):
            set_layout(self.node, choice.results[0])
        for item in _items(self.node):
            layout = choice.results[result_index(item)]
            set_choice(item, Choice("item", (), (layout,)))
            set_layout(item, layout)

    def _held(self, node: Node, value: torch.Tensor, layout: Layout, ranks: int) -> list[torch.Tensor]:
        """What each rank holds of an operand."""
        if isinstance(layout, Split):
            where = concrete(dims_of(node), layout).dims
            return [take(value.clone(), where, rank) for rank in range(ranks)]
        if isinstance(layout, Partial):
            return _partials(value, ranks, self.random.randrange(2**31))
        return [value.clone() for _ in range(ranks)]

    def _compare(
        self, what: str, made: Sequence[torch.Tensor], whole: torch.Tensor, dims: Dims, layout: Layout
    ) -> None:
        if isinstance(layout, Partial):
            for rank, value in enumerate(made):
                self._close(
                    f"{what}: rank {rank}'s partial sum", torch.zeros_like(value), torch.zeros_like(whole)
                )
            self._close(
                f"{what}: the ranks' partial sums", combine_partials(made, layout.op).to(whole.dtype), whole
            )
            return
        where = concrete(dims, layout).dims if isinstance(layout, Split) else ()
        for rank, value in enumerate(made):
            self._close(f"{what}: rank {rank}", value, take(whole, where, rank))

    def _close(self, who: str, value: torch.Tensor, expected: torch.Tensor) -> None:
        if not self.known:
            value, expected = torch.zeros_like(value), torch.zeros_like(expected)
        error = max(TOLERANCE.get(one.dtype, 0.0) for one in (*self.inputs, expected))
        try:
            torch.testing.assert_close(
                value, expected, rtol=error, atol=error, equal_nan=True, check_stride=False
            )
        except AssertionError as reason:
            raise UntrueRuleError(f"{who} differs from the op run whole. {reason}") from reason

    def _describe(self, choice: Choice, split: Split | None, ranks: int) -> str:
        names: dict[Dim, str] = {}
        tensors = [
            " ".join(show(dims, names)) or "()" for dims in (*self.bound.operands, *self.bound.results)
        ]
        call = ", ".join(tensors[: len(self.inputs)]) + " -> " + ", ".join(tensors[len(self.inputs) :])
        if choice.kind == "whole":
            way = "whole"
        elif split is None:
            partial = [at for at, need in enumerate(choice.operands) if need is PARTIAL_SUM]
            way = f"partial sums in operands {partial}"
        else:
            held = [tuple(intervals.values()) for intervals in split.rank_intervals]
            way = f"split {' '.join(show(split.axes, names))} as {held}"
        return f"{self.node.target} {self.node.args} {self.node.kwargs or ''}: {call}, {way}, {ranks} ranks"


def _graph(op: Any, args: Any, kwargs: Any) -> tuple[Graph, Node]:
    """One call with a placeholder for each tensor argument; the graph returns the results one by one."""
    graph, mode = Graph(), fakes_of_known_sizes()

    def placeholder(value: torch.Tensor) -> Node:
        node = graph.placeholder(f"operand{len(graph.nodes)}")
        node.meta["val"] = mode.from_tensor(value)
        return node

    args, kwargs = _map(args, placeholder), _map(kwargs, placeholder)
    node = graph.call_function(op, tuple(args), kwargs)
    with mode:
        node.meta["val"] = op(*_map(args, _value), **_map(kwargs, _value))
    if is_tensor(node):
        graph.output((node,))
        return graph, node
    _take_apart(node)
    graph.output(tuple(_items(node)))
    return graph, node


def _take_apart(node: Node) -> None:
    """Add what takes each tensor out of a node's result, of tuples in it too."""
    for index, value in enumerate(node.meta["val"]):
        if isinstance(value, (torch.Tensor, tuple, list)):
            item = node.graph.call_function(operator.getitem, (node, index))
            item.meta["val"] = value
            if not isinstance(value, torch.Tensor):
                _take_apart(item)


def _items(node: Node) -> Iterator[Node]:
    """The tensors that are taken out of a node's result."""
    for item in node.users:
        if item.target is operator.getitem:
            yield from (item,) if is_tensor(item) else _items(item)


def _infer(node: Node, rule: Rule, texts: Sequence[str | None], late: bool) -> None:
    """Bind the op's rule, its operands' dimensions refined before or afterwards."""
    names: dict[str, Dim] = {}
    refinements: list[tuple[Dim, Dim]] = []
    for position, operand in enumerate(tensor_nodes(node)):
        dims = [Dim(size_of(extent)) for extent in operand.meta["val"].shape]
        text = texts[position] if position < len(texts) else None
        if text is not None:
            refinements += zip(dims, read(text, names), strict=True)
        set_dims(operand, dims)
    if not late:
        _refine(refinements)
    bound = bind(node, rule)
    if late:
        _refine(refinements)
    bound.settle()


def _refine(pairs: Sequence[tuple[Dim, Dim]]) -> None:
    for dim, structure in pairs:
        if (size := find(dim).size) != find(structure).size:
            raise ValueError(f"a dimension of {size} cannot be {structure}")
        unify(dim, structure)


def _keys(tensors: Sequence[Dims]) -> list[tuple[Dim, ...]]:
    """The axes of some tensors, and pairs of which one is directly inside the other."""
    return list(dict.fromkeys(key for dims in tensors for dim in dims for key in _inside(find(dim))))


def _inside(root: Dim) -> Iterator[tuple[Dim, ...]]:
    if root.form is None:
        if root in axes(root):
            yield (root,)
        return
    for part in root.form.parts:
        yield from _inside(find(part))
    if isinstance(root.form, Product):
        parts = factors(root)
        yield from (pair for pair in itertools.pairwise(parts) if not any(part.form for part in pair))


def _divisions(split: Split, ranks: int, drawn: random.Random) -> Iterator[list[int]]:
    """A division in which every rank has something, and one in which one has nothing, if there are such."""
    for idle in (False, True):
        for _ in range(100):
            cuts = sorted(drawn.randint(0, split.units) for _ in range(ranks - 1))
            sizes = [stop - start for start, stop in zip([0, *cuts], [*cuts, split.units], strict=True)]
            if (0 in sizes) is idle and split.fits(sizes):
                yield sizes
                break


def _adds(value: torch.Tensor) -> bool:
    return value.dtype is not torch.bool and value.dtype is not torch.uint8


def _partials(value: torch.Tensor, ranks: int, seed: int) -> list[torch.Tensor]:
    """Random partial sums of a tensor, one a rank."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(value.shape, generator=generator, dtype=torch.float64) * 2 for _ in range(ranks - 1)]
    partials = [partial_sum.to(value.dtype).to(value.device) for partial_sum in drawn]
    return [*partials, value - sum(partials)]


def _value(node: Node) -> Any:
    return node.meta["val"]


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _map(values: Any, change: Callable[[Any], Any]) -> Any:
    """Arguments with their tensors, or the nodes in their place, changed."""
    if isinstance(values, (torch.Tensor, Node)):
        return change(values)
    if isinstance(values, (list, tuple)):
        return type(values)(_map(value, change) for value in values)
    return (
        {name: _map(value, change) for name, value in values.items()} if isinstance(values, dict) else values
    )
