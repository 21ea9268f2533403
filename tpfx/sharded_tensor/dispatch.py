"""Eager ops on sharded tensors: part by part where that is the same thing, on the gathered whole otherwise.

A view that cannot be had part by part is made anew of the gathered base each time it is looked at; what is
written into it goes to the base. So every op is right, and `eager.ROWS` says which ones are cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from ..errors import ShardingError
from ..ir.shards import Shards
from ..kernels.slices import relaid
from ..rules.views import bounds
from ..torch_internals.pytree import tree_map
from .foreach import by_list, by_reduction, over_lists
from .op_table import ROWS, Kept, Row, cut, elementwise, moved, written
from .per_shard import Columns, everywhere, gathered_for, made_of, on_each, spread
from .storage import Fake, Unsharded, ViewOf
from .tensor import ShardedTensor

aten = torch.ops.aten


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry out an op of which at least one argument is a ShardedTensor."""
    owner = _owner(args)
    if owner is None or isinstance(owner.held, Fake):
        return _on_wholes(func, args, kwargs)
    if func is aten.detach.default or func is aten.alias.default:
        return owner.alias()
    if torch.Tag.inplace_view in func.tags:
        raise ShardingError(
            f"{func} cannot change the shape of {owner!r} in place: make a new tensor instead"
        )
    if kwargs.get("device") == owner.device:
        kwargs = {name: value for name, value in kwargs.items() if name != "device"}
    if over_lists(func):
        return by_list(func, args, kwargs, _on_wholes)
    done = _by_parts(func, args, kwargs, owner)
    if done is not None:
        return done
    if func.is_view:
        return _view(func, args, kwargs, owner)
    if func is aten._to_copy.default and isinstance(owner.held, Unsharded) and "device" not in kwargs:
        return _undivided_copy(func, args, kwargs, owner)
    return _on_wholes(func, args, kwargs)


def _owner(args: Sequence[Any]) -> ShardedTensor | None:
    """The tensor whose parts decide how an op is carried out: the first that is split, or else the first."""
    found: ShardedTensor | None = None
    for arg in args:
        for leaf in arg if isinstance(arg, (list, tuple)) else (arg,):
            if isinstance(leaf, ShardedTensor):
                if leaf.placement:
                    return leaf
                found = found if found is not None else leaf
    return found


def _by_parts(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], owner: ShardedTensor) -> Any:
    """The op on every part by itself; None where that is not the same thing."""
    if owner.shards is None or "device" in kwargs:
        return None
    row = ROWS.get(func)
    if row is not None:
        return None if kwargs else _by_row(func, args, owner)
    number = by_reduction(func, args, kwargs)
    if number is not None:
        return number
    return _by_element(func, args, kwargs, owner) if elementwise(func) else None


def _by_element(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], owner: ShardedTensor) -> Any:
    assert owner.placement is not None
    tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, torch.Tensor)]
    shape = (
        owner.shape if len(tensors) == 1 else torch.broadcast_shapes(*[tensor.shape for tensor in tensors])
    )
    new = len(shape) - owner.dim()
    if any(shape[dim + new] != owner.shape[dim] for dim, _ in owner.placement.dims):
        return None
    placement = (
        Shards(tuple((dim + new, own) for dim, own in owner.placement.dims)) if new else owner.placement
    )
    if func._schema.is_mutable:
        if written(func) != (0,) or args[0] is not owner:
            return None
        on_each(owner.mesh, func, [spread(arg, owner, placement, shape) for arg in args], kwargs)
        return owner
    parts = on_each(owner.mesh, func, [spread(arg, owner, placement, shape) for arg in args], kwargs)
    made = made_of(owner, parts, placement, shape)
    if func is aten._to_copy.default:
        made.qualified_name = owner.qualified_name
    return made


def _by_row(func: Any, args: tuple[Any, ...], owner: ShardedTensor) -> Any:
    """An op that keeps the split dimensions as they are."""
    assert owner.placement is not None
    row = ROWS[func]
    if not isinstance(args[0], (list, tuple)) and args[0] is not owner:
        return None
    like = _like(func, args, owner) if func.is_view or row.sizes is not None else None
    shape = like.shape if isinstance(like, torch.Tensor) else ()
    kept = row.kept(owner.shape, args, shape)
    placement = None if kept is None else moved(owner.placement, kept)
    if placement is None or kept is None:
        return _slice_split(args, owner, like) if func is aten.slice.Tensor else None
    columns = _columns(row, args, owner, placement, kept, shape)
    parts = on_each(owner.mesh, _PARTWISE.get(func, func), columns)
    if func._schema.is_mutable:
        return owner
    if isinstance(like, torch.Tensor):
        return made_of(owner, parts, placement, like.shape, like.stride())
    if like is None:
        return made_of(owner, parts, placement, _grown(parts[0].shape, placement, owner, kept))
    pieces = [[part[index] for part in parts] for index in range(len(like))]
    return [
        made_of(owner, own, placement, item.shape, item.stride())
        for item, own in zip(like, pieces, strict=True)
    ]


def _columns(
    row: Row, args: tuple[Any, ...], owner: ShardedTensor, placement: Shards, kept: Kept, shape: Sequence[int]
) -> Columns:
    """Each argument as each rank needs it."""
    assert owner.placement is not None
    columns: Columns = []
    for position, arg in enumerate(args):
        if position == row.sizes:
            columns.append(_local_sizes(shape, placement, owner))
        elif position in row.aligned:
            extents = [owner.shape[dim] if dim is not None else 1 for dim in kept]
            columns.append(spread(arg, owner, placement, extents))
        elif position == 0 and isinstance(arg, (list, tuple)):
            items = [spread(item, owner, owner.placement, owner.shape) for item in arg]
            columns.append(list(zip(*items, strict=True)))
        else:
            columns.append(everywhere(arg, owner))
    return columns


# A part may not be dense where the whole would be.
_PARTWISE = {aten.view.default: torch.reshape, aten._unsafe_view.default: torch.reshape}


def _slice_split(args: tuple[Any, ...], owner: ShardedTensor, like: Any) -> ShardedTensor | None:
    """A slice of a split dimension: each rank has what of it lies in its part."""
    given: list[Any] = [*args[1:], *(0, None, None, 1)[len(args) - 1 :]]
    at, start, end, step = given
    limits = bounds(start, end, owner.shape[at])
    if limits is None or step != 1 or owner.placement is None or owner.shards is None:
        return None
    at %= owner.dim()
    placement, inside = cut(owner.placement, at, *limits)
    own = [inside[rank] for rank in owner.mesh.owned]
    parts = [part.narrow(at, a, b - a) for part, (a, b) in zip(owner.shards, own, strict=True)]
    return made_of(owner, parts, placement, like.shape, like.stride())


def _like(func: Any, args: tuple[Any, ...], owner: ShardedTensor) -> Any:
    """The shapes and strides that the op would give of the whole."""
    whole = torch.empty_strided(owner.shape, owner.stride(), dtype=owner.dtype, device="meta")
    return func(whole, *args[1:])


def _grown(
    shape: Sequence[int], placement: Shards, owner: ShardedTensor, kept: Sequence[int | None]
) -> list[int]:
    """The whole shape, from that of a part: split dimensions are as large as the operand's."""
    grown = list(shape)
    for dim, _ in placement.dims:
        grown[dim] = owner.shape[kept[dim]]  # type: ignore[index]
    return grown


def _local_sizes(shape: Sequence[int], placement: Shards, owner: ShardedTensor) -> list[list[int]]:
    columns = []
    for rank in owner.mesh.owned:
        local = list(shape)
        for dim, owned in placement.dims:
            local[dim] = sum(stop - start for start, stop in owned[rank])
        columns.append(local)
    return columns


def _view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], owner: ShardedTensor) -> Any:
    """Views that are made anew of the whole whenever they are looked at."""

    def again(whole: torch.Tensor, index: int | None = None) -> torch.Tensor:
        if (
            func is aten.as_strided.default
        ):  # it looks through the shape, at how the whole would lie in memory
            whole = relaid(whole, owner.stride(), owner.storage_offset())
        views = func(whole, *args[1:], **kwargs)
        return views if index is None else views[index]  # type: ignore[no-any-return]

    like = _like(partial(func, **kwargs), args, owner)
    if isinstance(like, torch.Tensor):
        return _behind(owner, like, again)
    return [_behind(owner, item, partial(again, index=index)) for index, item in enumerate(like)]


def _behind(base: ShardedTensor, like: torch.Tensor, again: Callable[..., torch.Tensor]) -> ShardedTensor:
    return ShardedTensor(base.mesh, like, like.shape, held=ViewOf(base, again), stride=like.stride())


def _undivided_copy(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], owner: ShardedTensor
) -> ShardedTensor:
    assert isinstance(owner.held, Unsharded)
    whole = func(owner.held.whole.detach(), *args[1:], **kwargs)
    made = ShardedTensor.unsharded(owner.mesh, whole)
    made.qualified_name = owner.qualified_name
    return made


def _on_wholes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Gather, run, and write back what the op changed in place."""
    gathered: dict[int, Any] = {}

    def gather(leaf: Any) -> Any:
        if not isinstance(leaf, ShardedTensor):
            return leaf
        return gathered.setdefault(id(leaf), gathered_for(leaf, func) if id(leaf) not in gathered else None)

    result = func(*tree_map(gather, args), **tree_map(gather, kwargs))
    if not func._schema.is_mutable:
        return result
    targets = list(_targets(func, args, kwargs))
    for target in targets:
        target.store(gathered[id(target)])
    return targets[0] if len(targets) == 1 and isinstance(result, torch.Tensor) else result


def _targets(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[ShardedTensor]:
    """The sharded tensors that an op writes into."""
    for position in written(func):
        name = func._schema.arguments[position].name
        value = args[position] if position < len(args) else kwargs.get(name)
        for leaf in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(leaf, ShardedTensor):
                yield leaf


ShardedTensor.carry_out = staticmethod(dispatch)
