"""Which eager ops work on the parts of a sharded tensor one by one, and what the result's parts are then.

    ROWS[aten.transpose.int].kept((4, 6), (x, 0, 1), (6, 4))     # (1, 0): where each dimension comes from

A dimension that an op keeps as it is may be split: the parts of the result lie as those of the operand do.
An op that is not listed here, or touches a split dimension, needs the whole tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..ir.layout import Interval
from ..ir.shards import Pieces, Shards, count_below

aten = torch.ops.aten

Shape = Sequence[int]
Kept = Sequence[int | None]


@dataclass(frozen=True, slots=True)
class Row:
    """How an op treats the dimensions of its first argument, a tensor or a list of tensors.

    Attributes:
        kept: from the operand's shape, the arguments and the result's shape: for each dimension of the
            result the one that it is, None for a new or changed one; None for all where that cannot be said.
        aligned: the other arguments that are taken apart as the result is (broadcast to it), by position.
        sizes: the argument that spells out the shape of the result.
    """

    kept: Callable[[Shape, Sequence[Any], Shape], Kept | None]
    aligned: tuple[int, ...] = ()
    sizes: int | None = None


def _at(args: Sequence[Any], position: int, rank: int) -> int:
    """The dimension that an argument names, the first one where it is left out."""
    dim: int = args[position] if len(args) > position else 0
    return dim % rank


def _changed(position: int) -> Callable[[Shape, Sequence[Any], Shape], Kept]:
    def kept(shape: Shape, args: Sequence[Any], _: Shape) -> Kept:
        at = _at(args, position, len(shape))
        return [None if dim == at else dim for dim in range(len(shape))]

    return kept


def _dropped(position: int) -> Callable[[Shape, Sequence[Any], Shape], Kept]:
    def kept(shape: Shape, args: Sequence[Any], _: Shape) -> Kept:
        at = _at(args, position, len(shape))
        return [dim for dim in range(len(shape)) if dim != at]

    return kept


def _added(position: int) -> Callable[[Shape, Sequence[Any], Shape], Kept]:
    def kept(shape: Shape, args: Sequence[Any], _: Shape) -> Kept:
        at = _at(args, position, len(shape) + 1)
        return [*range(at), None, *range(at, len(shape))]

    return kept


def _squeezed(shape: Shape, args: Sequence[Any], _: Shape) -> Kept:
    at = _at(args, 1, len(shape))
    return [dim for dim in range(len(shape)) if dim != at or shape[at] != 1]


def _transposed(shape: Shape, args: Sequence[Any], _: Shape) -> Kept:
    order = list(range(len(shape)))
    if order:
        first, second = _at(args, 1, len(order)), _at(args, 2, len(order))
        order[first], order[second] = order[second], order[first]
    return order


def _turned(shape: Shape, args: Sequence[Any], _: Shape) -> Kept:
    return list(reversed(range(len(shape))))


def _permuted(shape: Shape, args: Sequence[Any], _: Shape) -> Kept:
    return [dim % len(shape) for dim in args[1]]


def _expanded(shape: Shape, args: Sequence[Any], result: Shape) -> Kept:
    new = len(result) - len(shape)
    return [None if at < new or shape[at - new] != extent else at - new for at, extent in enumerate(result)]


def _viewed(shape: Shape, args: Sequence[Any], result: Shape) -> Kept | None:
    """A dimension stays where as much lies before it, and it is as large, as before."""
    if 0 in shape:
        return None
    before = {_product(shape[:dim]): dim for dim in range(len(shape)) if shape[dim] != 1}
    kept: list[int | None] = []
    for at, extent in enumerate(result):
        dim = before.get(_product(result[:at]))
        kept.append(dim if extent != 1 and dim is not None and shape[dim] == extent else None)
    return kept


def _product(extents: Shape) -> int:
    return functools.reduce(lambda left, right: left * right, extents, 1)


def _indexed(shape: Shape, args: Sequence[Any], _: Shape) -> Kept | None:
    """`x[:, index]`, of one dimension: with several index tensors the new dimensions may go elsewhere."""
    used = [(at, index) for at, index in enumerate(args[1]) if index is not None]
    if len(used) != 1:
        return None
    at, index = used[0]
    if index.dtype in (torch.bool, torch.uint8) and index.dim() != 1:
        return None
    return [*range(at), *[None] * index.dim(), *range(at + 1, len(shape))]


ROWS: dict[Any, Row] = {
    aten.index_select.default: Row(_changed(1)),
    aten.slice.Tensor: Row(_changed(1)),
    aten.select.int: Row(_dropped(1)),
    aten.split.Tensor: Row(_changed(2)),
    aten.split_with_sizes.default: Row(_changed(2)),
    aten.unbind.int: Row(_dropped(1)),
    aten.cat.default: Row(_changed(1)),
    aten.stack.default: Row(_added(1)),
    aten.unsqueeze.default: Row(_added(1)),
    aten.squeeze.dim: Row(_squeezed),
    aten.transpose.int: Row(_transposed),
    aten.t.default: Row(_turned),
    aten.permute.default: Row(_permuted),
    aten.expand.default: Row(_expanded, sizes=1),
    aten.view.default: Row(_viewed, sizes=1),
    aten._unsafe_view.default: Row(_viewed, sizes=1),
    aten.index.Tensor: Row(_indexed),
    aten.index_put_.default: Row(_indexed, aligned=(2,)),
    aten.index_copy_.default: Row(_changed(1), aligned=(3,)),
    aten.index_add_.default: Row(_changed(1), aligned=(3,)),
    aten.index_fill_.int_Scalar: Row(_changed(1)),
}

# Ops without the pointwise tag that work on each element by itself, or on none.
_ELEMENTWISE = {
    aten._to_copy.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.empty_like.default,
    aten.full_like.default,
    aten.copy_.default,
    aten.zero_.default,
    aten.fill_.Scalar,
    aten.fill_.Tensor,
}


@functools.cache
def elementwise(func: Any) -> bool:
    """Whether each element of the result comes from the same element of the operands, broadcast."""
    if func in _ELEMENTWISE:
        return True
    schema, tags = func._schema, func.tags
    one_tensor = (
        len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor"
    )  # aten.equal has the tag too
    return (
        torch.Tag.pointwise in tags
        and torch.Tag.nondeterministic_seeded not in tags
        and one_tensor
        and not any(argument.is_out for argument in schema.arguments)
    )


@functools.cache
def written(func: Any) -> tuple[int, ...]:
    """The positions of the arguments that an op writes into."""
    arguments = enumerate(func._schema.arguments)
    return tuple(
        at for at, argument in arguments if argument.alias_info is not None and argument.alias_info.is_write
    )


def moved(placement: Shards, kept: Kept) -> Shards | None:
    """The placement of a result whose dimensions come from these; None where a split one is not kept."""
    dims = []
    for dim, owned in placement.dims:
        if dim not in kept:
            return None
        dims.append((kept.index(dim), owned))
    if all(new == old for (new, _), (old, _) in zip(dims, placement.dims, strict=True)):
        return placement
    return Shards(tuple(sorted(dims)))


def cut(placement: Shards, at: int, start: int, stop: int) -> tuple[Shards, list[Interval]]:
    """A slice of a split dimension: its placement, and where the slice lies in the part of each rank."""
    owned = dict(placement.dims)[at]
    inside = [(count_below(own, start), count_below(own, stop)) for own in owned]
    clipped: tuple[Pieces, ...] = tuple(
        tuple((max(a, start) - start, min(b, stop) - start) for a, b in own if a < stop and b > start)
        for own in owned
    )
    dims = tuple((dim, clipped if dim == at else intervals) for dim, intervals in placement.dims)
    return Shards(dims), inside
