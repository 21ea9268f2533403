"""What a rank calls for an eager op on its shards: the op itself, or with other numbers.

A graph writes nodes for what a rule's `lower` names; an eager op has only numbers to change. An op that
is carried out in another way on a rank, such as a convolution of its groups, needs the whole tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from ..ir.axes import find
from ..ir.nodes import parameters
from ..ir.op_dims import Call
from ..ir.shards import SplitDims, count_below
from ..kernels.slices import local_shape
from ..rules import Rule
from ..rules.rule import Lowering
from ..rules.views import bounds

aten = torch.ops.aten

Arguments = tuple[Any, ...]  # of a call, those after the first


@dataclass(frozen=True, slots=True)
class Local:
    """What each rank calls: `op`, or where it is None the op that was called; with these arguments after the
    first, a row for each rank, or where it is None with those that were given."""

    op: Callable[..., Any] | None = None
    arguments: tuple[Arguments, ...] | None = None


# A shard may not be dense where the whole would be.
_BY_SHAPE = {aten.view.default: torch.reshape, aten._unsafe_view.default: torch.reshape}


def local_call(
    call: Call, rule: Rule, operand: SplitDims | None, result: SplitDims | None, ranks: Sequence[int]
) -> Local | None:
    """What the ranks call, where the first operand and the first result lie so; None: another op."""
    if operand is None or result is None:
        return None
    if rule.shape is not None:
        target: Any = call.node.target
        names = [name for name, _ in parameters(target)][: len(call.node.args)]
        if rule.shape not in names:
            return None
        at, given = names.index(rule.shape), call.node.args
        shapes = [local_shape(call.results[0].shape, result, rank) for rank in ranks]
        rows = tuple((*given[1:at], shape, *given[at + 1 :]) for shape in shapes)
        return Local(_BY_SHAPE.get(target, target), rows)
    if rule.pad_empty_shards or rule.contiguous:
        return None
    if rule.lower is None or rule.lower in _ONLY_WHERE_CONTRACTED:
        return Local()
    lower = _LOWER.get(rule.lower)
    return None if lower is None else lower(call, operand, ranks)


# A rank of a graph calls something else where the dimension is split that these contract. An eager op that
# contracts a split dimension is not bound at all.
_ONLY_WHERE_CONTRACTED = {
    Lowering.EMBEDDING,
    Lowering.EXTREME,
    Lowering.GATHER,
    Lowering.LINEAR,
    Lowering.MEAN,
    Lowering.SELECT,  # a split dimension that an index takes one place of is not bound either
}


def _slice(call: Call, operand: SplitDims, ranks: Sequence[int]) -> Local:
    at = call.dim(call["dim"])
    owned, limits = dict(operand).get(at), bounds(call["start"], call["end"], find(call.dims[0][at]).size)
    if owned is None or limits is None:
        return Local()
    own = [[count_below(owned[rank], limit) for limit in limits] for rank in ranks]
    return Local(aten.slice.Tensor, tuple((at, start, stop) for start, stop in own))


def _split(call: Call, operand: SplitDims, ranks: Sequence[int]) -> Local:
    at = call.dim(call["dim"])
    owned, ends = dict(operand).get(at), [0]
    if owned is None:
        return Local()
    for value in call.results:
        ends.append(ends[-1] + int(value.shape[at]))
    counts = [[count_below(owned[rank], end) for end in ends] for rank in ranks]
    sizes = [[stop - start for start, stop in pairwise(each)] for each in counts]
    return Local(aten.split_with_sizes.default, tuple((each, at) for each in sizes))


def _squeeze(call: Call, operand: SplitDims, ranks: Sequence[int]) -> Local:
    """Only what is of size 1 in the whole goes, not what is so on a rank."""
    dims, given = call.dims[0], call.get("dim", range(len(call.dims[0])))
    named = [call.dim(index) for index in (given if isinstance(given, (list, tuple, range)) else [given])]
    gone = [index for index in named if dims and find(dims[index]).size == 1]
    return Local(aten.squeeze.dims, ((gone,),) * len(ranks))


_LOWER: dict[Lowering, Callable[[Call, SplitDims, Sequence[int]], Local]] = {
    Lowering.SLICE: _slice,
    Lowering.SPLIT: _split,
    Lowering.SQUEEZE: _squeeze,
}
