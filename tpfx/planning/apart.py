"""Keep the sides of a weight apart, where a graph would make one dimension of them.

    x + linear(x, weight)          both sides of the weight are the dimension that x has

Divided along that, a rank would have those columns of its rows alone: such a weight could only stay whole. So
where an op would make its sides one, an operand that is no weight is taken through an `alias`, which gives
it other dimensions and needs the old and the new ones whole:

    alias(x) + linear(x, weight)   the weight is divided along one side, and `x` gathered where it is used
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, combinations

import torch
from torch.fx import Graph, Node

from ..ir.annotations import bound_of, dims_of, source_of
from ..ir.axes import Concat, Dim, Product, axes, find, unify
from ..ir.layout import Split, splittable
from ..ir.nodes import is_tensor, size_of, tensor_nodes
from ..ir.op_dims import Bound, Call, Dims
from ..ir.provenance import ORIGIN
from ..rules import Rule
from ..rules.bind import bind


def folded_weights(graph: Graph) -> list[Node]:
    """The parameters that cannot be divided, since two of their dimensions have been found to be one."""
    return [
        node
        for node in graph.find_nodes(op="placeholder")
        if is_tensor(node) and source_of(node).kind == "parameter" and _is_folded(node)
    ]


def _is_folded(weight: Node) -> bool:
    dims = dims_of(weight)
    if not _share(dims):
        return False
    whole = {axis for bound in _uses(weight) for dim in bound.whole for axis in axes(dim)}
    free = frozenset().union(*map(axes, dims)) - whole
    return not any(splittable(dims, Split([axis])) for axis in free)


def _uses(value: Node) -> Iterator[Bound]:
    """What rules say of the ops that take a value, or what is made of it alone: a cast of it, or a view."""
    for user in value.users:
        bound = bound_of(user)
        if bound is not None:
            yield bound
            if user.all_input_nodes == [value]:
                yield from _uses(user)


def _share(dims: Dims) -> bool:
    """Whether two dimensions have an axis in common."""
    return any(not axes(left).isdisjoint(axes(right)) for left, right in combinations(dims, 2))


class Apart:
    """Binds the ops of a graph, whose inputs have new dimensions, such that the sides of weights stay apart.

    Args:
        weights: inputs of the graph; one whose own ops make its sides one is given up.
    """

    def __init__(self, weights: Sequence[Node]) -> None:
        self._of_weights: set[Node] = set()  # what is made of weights alone
        self._age: dict[Node, int] = {}
        self._holders: dict[Dim, set[Node]] = {}  # of an axis: the weights that have it
        for weight in weights:
            for axis in chain.from_iterable(map(axes, dims_of(weight))):
                self._holders.setdefault(axis, set()).add(weight)

    def bind(self, node: Node, rule: Rule | None) -> None:
        """Bind a rule to a call, after such aliases as it needs are put before it."""
        operands = list(dict.fromkeys(tensor_nodes(node)))
        weights = self._held([dim for operand in operands for dim in dims_of(operand)])
        if weights and rule is not None:
            for moved in self._ways(operands, weights):
                if not _fold(weights, moved, lambda dims: rule.bind(Call(node, dims, size_of))):
                    for operand, at in moved.items():
                        other = alias(node, operand, Rule(partial(_other_dims, at)))
                        node.replace_input_with(operand, other)
                    break
        operands = list(dict.fromkeys(tensor_nodes(node)))
        before = [axis for operand in operands for dim in dims_of(operand) for axis in axes(dim)]
        bind(node, rule)
        self._follow(before)
        self._age[node] = len(self._age)
        if operands and all(operand in self._of_weights or _is_weight(operand) for operand in operands):
            self._of_weights.add(node)

    def join(self, gradient: Node, weight: Node) -> Node:
        """A gradient such that its dimensions can be made those of its weight, where it can be had."""
        weights = self._held([*dims_of(gradient), *dims_of(weight)])
        given = gradient
        for moved in self._ways([given], weights) if weights else ():
            if not _fold(weights, moved, lambda dims: same_dims(dims(given), dims(weight))):
                for operand, at in moved.items():
                    gradient = alias(operand.graph.output_node(), operand, Rule(partial(_other_dims, at)))
                break
        before = [axis for node in (gradient, weight) for dim in dims_of(node) for axis in axes(dim)]
        same_dims(dims_of(gradient), dims_of(weight))
        self._follow(before)
        return gradient

    def _held(self, dims: Sequence[Dim]) -> list[Node]:
        """The weights that have an axis of these dimensions, whose sides are apart."""
        found = dict.fromkeys(
            weight for dim in dims for axis in axes(dim) for weight in self._holders.get(axis, ())
        )
        return [weight for weight in found if not _share(dims_of(weight))]

    def _follow(self, before: Sequence[Dim]) -> None:
        """Some axes may be others now, or made of others."""
        for axis in before:
            now = axes(axis)
            if now != {axis} and axis in self._holders:
                weights = self._holders.pop(axis)
                for other in now:
                    self._holders.setdefault(other, set()).update(weights)

    def _ways(
        self, operands: Sequence[Node], weights: Sequence[Node]
    ) -> Iterator[Mapping[Node, tuple[int, ...]]]:
        """Which operands to take through an alias, and which of their dimensions: none; one, old ones first,
        since what is newer is nearer to the weight that it was computed with; all."""
        yield {}
        known = frozenset(axis for weight in weights for dim in dims_of(weight) for axis in axes(dim))
        moved = {
            operand: tuple(at for at, dim in enumerate(dims_of(operand)) if not axes(dim).isdisjoint(known))
            for operand in sorted(operands, key=lambda operand: self._age.get(operand, -1))
            if operand not in self._of_weights and not _is_weight(operand)
        }
        for operand, at in moved.items():
            if at:
                yield {operand: at}
        yield {operand: at for operand, at in moved.items() if at}


def _is_weight(node: Node) -> bool:
    return node.op == "placeholder" and is_tensor(node) and source_of(node).is_weight


def _fold(
    weights: Sequence[Node],
    moved: Mapping[Node, tuple[int, ...]],
    say: Callable[[Callable[[Node], Dims]], object],
) -> bool:
    """Whether sides of weights would become one by what is said of dimensions: tried on copies of all."""
    copies: dict[Dim, Dim] = {}
    sides = [_copied(dims_of(weight), copies) for weight in weights]
    say(lambda node: _moved(_copied(dims_of(node), copies), moved.get(node, ())))
    return any(map(_share, sides))


def _copied(dims: Dims, copies: dict[Dim, Dim]) -> Dims:
    """Dimensions that are the same among themselves, of which no other learns."""
    return [_copy(find(dim), copies) for dim in dims]


def _copy(root: Dim, copies: dict[Dim, Dim]) -> Dim:
    if root not in copies:
        made = copies[root] = Dim(root.size)
        if isinstance(root.form, Product):
            made.form = Product(tuple(_copy(find(part), copies) for part in root.form.parts))
        elif isinstance(root.form, Concat):
            made.form = Concat(tuple(_copy(find(part), copies) for part in root.form.parts))
    return copies[root]


def _moved(dims: Dims, at: Collection[int]) -> Dims:
    return [Dim(find(dim).size) if index in at else dim for index, dim in enumerate(dims)]


def alias(before: Node, value: Node, rule: Rule, like: Node | None = None) -> Node:
    """The same value, of whose dimensions a rule says more, for a node that follows.

    `like`: whose sizes it has, where these may be told otherwise, and be the same.
    """
    with before.graph.inserting_before(before):
        made = before.graph.call_function(torch.ops.aten.alias.default, (value,))
    made.meta = {key: known for key, known in value.meta.items() if key in ORIGIN}
    made.meta["val"] = (like or value).meta["val"]
    bind(made, rule)
    return made


def same_dims(left: Dims, right: Dims) -> bool:
    """Make the dimensions of two tensors one; False where some could not be."""
    return all([unify(one, other) for one, other in zip(left, right, strict=True)])


def _other_dims(at: Collection[int], call: Call) -> Bound:
    """Some dimensions of the result are others, which is said of whole ones alone."""
    (dims,) = call.dims
    results = _moved(dims, at)
    whole = [dim for index in at for dim in (dims[index], results[index])]
    return Bound(call.dims, [results], whole)
