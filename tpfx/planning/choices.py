"""The ways in which each op could be carried out: whole, split along one axis, or with a partial sum.

`Column parallel` and `row parallel` are the same rule of the same op, split along one factor or another.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from torch.fx import Node

from ..ir.annotations import Choice, bound_of
from ..ir.axes import Dim, axes
from ..ir.layout import Layout, Partial, Replicate, Split, carries, partitions, splittable
from ..ir.nodes import tensor_nodes
from ..ir.op_dims import Bound, Dims
from ..ir.splits import Splits
from ..rules import is_random

REPLICATE = Replicate()
PARTIAL_SUM = Partial("sum")


def options(node: Node, splits: Splits, partials: Set[Node]) -> list[Choice]:
    """The ways to carry out an op; `partials` are the values that some choice leaves as partial sums."""
    bound = bound_of(node)
    assert bound is not None
    results = len(bound.results)
    found = [Choice("whole", (REPLICATE,) * len(bound.operands), (REPLICATE,) * results)]
    if is_random(node):
        return found
    for split in splits.of([*bound.operands, *bound.results]):
        choice = split_choice(bound, split)
        if choice is not None:
            found.append(choice)
    operands = list(tensor_nodes(node))
    for linear in bound.linear:
        if max(linear) < len(operands) and any(operands[index] in partials for index in linear):
            needs = tuple(PARTIAL_SUM if index in linear else REPLICATE for index in range(len(operands)))
            found.append(Choice("pending", needs, (PARTIAL_SUM,) * results))
    return found


def split_choice(bound: Bound, split: Split) -> Choice | None:
    """An op carried out with its tensors in a split; None where its rule does not allow it."""
    if any(carries(dim, split) for dim in bound.whole):
        return None
    if not all(splittable(dims, split) for dims in (*bound.operands, *bound.results)):
        return None
    operands = tuple(_held(dims, split) for dims in bound.operands)
    results = tuple(_held(dims, split) for dims in bound.results)
    contracted = [dim for dim in bound.contracted if carries(dim, split)]
    if not contracted:
        return Choice("split", operands, results)
    if not partitions(contracted, split) or (split in results and not bound.each):
        return None
    if not all(_has_all(dims, contracted, split) for dims in bound.results if _held(dims, split) is split):
        return None  # a shard of partial sums, which is no layout
    partial_sum = Partial(bound.reduce)
    return Choice("split", operands, tuple(split if layout is split else partial_sum for layout in results))


def _held(dims: Dims, split: Split) -> Layout:
    return split if any(carries(dim, split) for dim in dims) else REPLICATE


def _has_all(dims: Dims, contracted: Sequence[Dim], split: Split) -> bool:
    """Whether a result has all of the axes that are divided of what an op contracts."""
    divided = [axis for axis in split.axes if any(axis in axes(dim) for dim in contracted)]
    return all(any(axis in axes(dim) for dim in dims) for axis in divided)


def allows(node: Node, choice: Choice) -> bool:
    """Whether an op's rule allows to carry it out in this way."""
    bound = bound_of(node)
    assert bound is not None
    counts = len(bound.operands), len(bound.results)
    if (len(choice.operands), len(choice.results)) != counts:
        return False
    held = (*choice.operands, *choice.results)
    match choice.kind:
        case "whole":
            return all(layout == REPLICATE for layout in held)
        case "split":
            split = next((layout for layout in held if isinstance(layout, Split)), None)
            return split is not None and not is_random(node) and split_choice(bound, split) == choice
        case "pending":
            given = [index for index, layout in enumerate(choice.operands) if layout == PARTIAL_SUM]
            linear = any(sorted(one) == given for one in bound.linear) and not is_random(node)
            others = all(layout in (PARTIAL_SUM, REPLICATE) for layout in choice.operands)
            return linear and others and all(layout == PARTIAL_SUM for layout in choice.results)
    return False
