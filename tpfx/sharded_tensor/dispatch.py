"""Eager ops on sharded tensors: shard by shard where that is the same thing, on the gathered whole otherwise.

A view that cannot be had shard by shard is made anew of the gathered base each time it is looked at; what is
written into it goes to the base. So every op is right, and the rules of ops say which ones are cheap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..errors import ShardingError
from ..kernels.slices import restride
from ..torch_internals.distributed import COLLECTIVES, scatter_of, waited_for
from ..torch_internals.fx import tree_leaves, tree_map, tree_map_only
from ..torch_internals.wrapper_subclass import as_data, given_to_graphs, is_view
from .bound_ops import BoundOp, bound_op, written
from .foreach import REDUCTIONS, by_list, by_reduction, over_lists
from .per_shard import gathered_for, run_bound
from .storage import CALLS, Cell, Fake, Sharded, Unsharded, ViewOf
from .tensor import ShardedTensor

aten = torch.ops.aten

_TO_COPY = aten._to_copy.default
_ALIASES = (aten.detach.default, aten.alias.default)


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry out an op of which at least one argument is a ShardedTensor."""
    owner = _owner(args)
    if owner is None or isinstance(owner.held, Fake):
        return _on_wholes(func, args, kwargs)
    if func.is_view and torch.is_inference_mode_enabled() and not owner.is_inference():
        return _view_of_tracked(func, args, kwargs, owner)
    return _carry_out(func, args, kwargs, owner)


def _view_of_tracked(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], owner: ShardedTensor) -> Any:
    """In inference mode, a view of what autograd follows: torch wants one that it could follow too."""
    parts = func.decompose(*args, **kwargs)
    if parts is not NotImplemented:
        return parts
    with torch.inference_mode(False):
        return _carry_out(func, args, kwargs, owner)


def _carry_out(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], owner: ShardedTensor) -> Any:
    """An op of which this argument's shards decide how it is carried out."""
    if func in _ALIASES:
        return owner.alias()
    if CALLS.running:
        _note_use(args)
    if _changes_shape(func):
        raise ShardingError(
            f"{func} cannot change the shape of {owner!r} in place: make a new tensor instead"
        )
    if kwargs and kwargs.get("device") == owner.device:
        kwargs = {name: value for name, value in kwargs.items() if name != "device"}
    if over_lists(func):
        return by_list(func, args, kwargs, _on_wholes)
    done = _by_shards(func, args, kwargs, owner)
    if done is not None:
        return done
    parts = func.decompose(*args, **kwargs)  # in inference mode ops come before torch has taken them apart
    if parts is not NotImplemented:
        return parts
    if func.is_view:
        return _view(func, args, kwargs, owner)
    if func is _TO_COPY and isinstance(owner.held, Unsharded) and "device" not in kwargs:
        return _undivided_copy(func, args, kwargs, owner)
    return _on_wholes(func, args, kwargs)


def _note_use(args: Sequence[Any]) -> None:
    """An eager op in a call of a model uses these: of weights that no graph has taken it is noted."""
    for arg in args:
        cell = arg.open_cell if isinstance(arg, ShardedTensor) else None
        if cell is not None:
            cell.used_eagerly = True


@functools.cache
def _changes_shape(func: Any) -> bool:
    """Whether an op gives its first argument another shape or other strides."""
    return torch.Tag.inplace_view in func.tags


def _owner(args: Sequence[Any]) -> ShardedTensor | None:
    """The tensor whose shards decide how an op is carried out: the first that is split, or else the first."""
    found: ShardedTensor | None = None
    for arg in args:
        for leaf in arg if isinstance(arg, (list, tuple)) else (arg,):
            if isinstance(leaf, ShardedTensor):
                if leaf.placement:
                    return leaf
                found = found if found is not None else leaf
    return found


def _by_shards(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], owner: ShardedTensor) -> Any:
    """The op on every shard by itself; None where that is not the same thing."""
    if not isinstance(owner.held, Sharded) or "device" in kwargs or any(map(_is_sparse, args)):
        return None
    if func in REDUCTIONS:
        number = by_reduction(func, args, kwargs)
        if number is not None:
            return number
    if func in _BY_INDICES:
        args = args[0], [_indices(index) for index in args[1]], *args[2:]
        if _owner(args) is not owner:  # it was a mask, of which the indices are whole
            return None
    bound = bound_op(func, args, kwargs, owner)
    if bound is None or (func._schema.is_mutable and not _in_place(func, args, owner, bound)):
        return None
    made = run_bound(func, args, kwargs, owner, bound)
    if func is _TO_COPY:
        made.qualified_name, made.weight_kind = owner.qualified_name, owner.weight_kind
        if owner.pinned is None:
            made.last_held = Unsharded(Cell(replace(made.held, chosen=False)))
    return made


def _is_sparse(arg: Any) -> bool:
    """Whether an argument has no memory to divide, as the gradient of an embedding with `sparse=True`."""
    return isinstance(arg, torch.Tensor) and arg.layout is not torch.strided


def _in_place(func: Any, args: tuple[Any, ...], owner: ShardedTensor, bound: BoundOp) -> bool:
    """Whether what an op writes into is the owner, as it lies."""
    return written(func) == (0,) and args[0] is owner and bound.results[0].placement is None


_BY_INDICES = (aten.index.Tensor, aten.index_put_.default)


def _indices(index: Any) -> Any:
    """A mask of one dimension as the indices it stands for: a rule knows no sizes that depend on values."""
    if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) and index.dim() == 1:
        whole = index.gathered() if isinstance(index, ShardedTensor) else index
        return whole.nonzero().squeeze(1)
    return index


def _like(func: Any, args: tuple[Any, ...], owner: ShardedTensor) -> Any:
    """The shapes and strides that the op would give of the whole."""
    whole = torch.empty_strided(owner.shape, owner.stride(), dtype=owner.dtype, device="meta")
    return func(whole, *args[1:])


def _view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], owner: ShardedTensor) -> Any:
    """Views that are made anew of the whole whenever they are looked at."""

    def again(whole: torch.Tensor, index: int | None = None) -> torch.Tensor:
        if (
            func is aten.as_strided.default
        ):  # it looks through the shape, at how the whole would lie in memory
            whole = restride(whole, owner.stride(), owner.storage_offset())
        views = func(whole, *args[1:], **kwargs)
        return views if index is None else views[index]  # type: ignore[no-any-return]

    like = _like(partial(func, **kwargs), args, owner)
    if isinstance(like, torch.Tensor):
        return _behind(owner, like, again)
    return [_behind(owner, item, partial(again, index=index)) for index, item in enumerate(like)]


def _behind(base: ShardedTensor, like: torch.Tensor, again: Callable[..., torch.Tensor]) -> ShardedTensor:
    return ShardedTensor.holding(ViewOf(base, again), base.mesh, like, stride=like.stride())


def _undivided_copy(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], owner: ShardedTensor
) -> ShardedTensor:
    assert isinstance(owner.held, Unsharded)
    whole = func(owner.held.whole.detach(), *args[1:], **kwargs)
    made = ShardedTensor.unsharded(owner.mesh, whole)
    made.qualified_name, made.weight_kind = owner.qualified_name, owner.weight_kind
    return made


def _on_wholes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Gather, run, and write back what the op changed in place."""
    gathered: dict[int, Any] = {}

    def gather(leaf: Any) -> Any:
        if not isinstance(leaf, ShardedTensor):
            return leaf
        return gathered.setdefault(id(leaf), gathered_for(leaf, func) if id(leaf) not in gathered else None)

    result = func(*tree_map(gather, args), **tree_map(gather, kwargs))
    if not written(func):
        return result
    if func.namespace == COLLECTIVES:
        result = waited_for(result)
    targets = list(_targets(func, args, kwargs))
    for target in targets:
        target.store(gathered[id(target)])
    return targets[0] if len(targets) == 1 and isinstance(result, torch.Tensor) else result


def _targets(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[ShardedTensor]:
    """The sharded tensors that an op writes into."""
    for position in written(func):
        name = func._schema.arguments[position].name
        value = args[position] if position < len(args) else kwargs.get(name)
        for leaf in tree_leaves(value):
            if isinstance(leaf, ShardedTensor):
                yield leaf


def whole_data(tensor: ShardedTensor) -> torch.Tensor:
    """What `plain.data = tensor` puts there: of what was computed, the whole.

    Raises:
        ShardingError: it is a weight or a view, whose memory the plain tensor would share.
    """
    if tensor.qualified_name is not None or is_view(tensor):
        raise ShardingError(
            f"{tensor!r} has no memory that a plain tensor could share: assign a copy, "
            "plain.data = tensor.full(), or the parameter itself"
        )
    return tensor.full()


def _wholes(tensors: Any) -> Any:
    return tree_map_only(ShardedTensor, lambda one: gathered_for(one, "a collective"), tensors)


def _for_graphs(arguments: Any) -> Any:
    """What an op that calls graphs takes: plain tensors, of which autograd knows what they come from."""

    def plain(one: ShardedTensor) -> torch.Tensor:
        made: torch.Tensor = aten.alias.default(one) if isinstance(one.held, Fake) else one.full()
        return made

    return tree_map_only(ShardedTensor, plain, arguments)


# Ways to a split tensor's memory that are no ops of its own.
BESIDE_OPS = (
    as_data(ShardedTensor, whole_data),
    scatter_of(_wholes),
    *given_to_graphs(ShardedTensor, _for_graphs),
)

ShardedTensor.carry_out = staticmethod(dispatch)
