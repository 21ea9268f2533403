"""Eager ops over lists of tensors, such as those of optimizers, and reductions to one number, shard by shard.

torch._foreach_mul_(gradients, 0.5)                 # one call a rank, on the lists of its shards
torch.nn.utils.clip_grad_norm_(parameters, 1.0)     # norms of shards, then the norm of those

What a rank's shard shares with an earlier rank's (a KV head that both need) counts once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..ir.shards import SplitDims, unseen
from ..kernels.slices import take
from ..runtime.mesh import Mesh
from ..runtime.processes import from_all
from .per_shard import Column, made_of, on_each, replicate_argument, shard_argument
from .tensor import ShardedTensor

aten = torch.ops.aten

Values = dict[str, Any]  # the arguments of a call, by name


@functools.cache
def over_lists(func: Any) -> bool:
    """Whether an op does the same to each tensor of a list, or of several lists, by itself."""
    name = func._schema.name.removeprefix("aten::")
    known = name.startswith(("_foreach_", "_fused_", "_amp_foreach_"))
    return known and name not in ("_foreach_norm", "_foreach_max", "_fused_moving_avg_obs_fq_helper")


def by_list(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], on_wholes: Callable[..., Any]) -> Any:
    """An op over lists: divided items by their shards, the others by `on_wholes(func, (), kwargs)`."""
    values = _named(func, args, kwargs)
    first = next(iter(values.values()))
    results: list[Any] = [None] * len(first)
    for ranks, chosen in _by_ranks(first).items():
        own = {name: _picked(value, chosen, len(first)) for name, value in values.items()}
        run = on_wholes if ranks is None else _on_shards
        made = run(func, (), own) or [None] * len(chosen)
        for at, item in zip(chosen, made, strict=True):
            results[at] = item
    return results if func._schema.returns else None


def _by_ranks(items: Sequence[Any]) -> dict[Any, list[int]]:
    """The positions of the items that lie on the same ranks, those that are not divided last."""
    found: dict[Any, list[int]] = {}
    for at, item in enumerate(items):
        found.setdefault((item.mesh.devices, item.mesh.owned) if _divided(item) else None, []).append(at)
    rest = found.pop(None, [])
    return {**found, None: rest} if rest else found


def _named(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Values:
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def _divided(item: Any) -> bool:
    return isinstance(item, ShardedTensor) and item.shards is not None


def _picked(value: Any, chosen: Sequence[int], count: int) -> Any:
    """The chosen items of a list that has one for each tensor; a list may also be empty, or no list."""
    if not isinstance(value, (list, tuple)) or len(value) != count:
        return value
    return [value[at] for at in chosen]


def _on_shards(func: Any, _: tuple[()], values: Values) -> Any:
    """The op on items that lie on the ranks: a call for each rank, on the list of its shards."""
    owners: list[ShardedTensor] = next(iter(values.values()))
    mesh = owners[0].mesh
    columns = {name: _column(value, owners) for name, value in values.items()}
    found, columns = _own_verdicts(values, columns, mesh)
    call = functools.partial(_call, func, list(columns))
    results = on_each(mesh, call, columns.values())
    if found is not None:
        verdicts = torch.stack([one.to(found.device) for one in columns["found_inf"]])
        found.copy_(torch.amax(from_all(verdicts, mesh)))
    if not func._schema.returns:
        return None
    pieces = zip(*results, strict=True)
    return [
        made_of(owner, shards, owner.placement, owner.shape, owner.stride())  # type: ignore[arg-type]
        for owner, shards in zip(owners, pieces, strict=True)
    ]


def _call(func: Any, names: Sequence[str], *values: Any) -> Any:
    return func(**dict(zip(names, values, strict=True)))


def _column(value: Any, owners: Sequence[ShardedTensor]) -> Column:
    """An argument as each rank needs it: of a list, the shards of its items."""
    if not isinstance(value, list) or len(value) != len(owners) or not isinstance(value[0], torch.Tensor):
        return replicate_argument(value, owners[0])
    columns = [_shards_for(item, owner) for item, owner in zip(value, owners, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def _shards_for(item: torch.Tensor, owner: ShardedTensor) -> Column:
    """A tensor that broadcasts to the owner, as each rank needs it."""
    if item is owner:
        return owner.shards or ()
    if isinstance(item, ShardedTensor) and item.placement is owner.placement and item.dim() == owner.dim():
        return shard_argument(item, owner, owner.placement.dims)  # type: ignore[union-attr]
    return shard_argument(item, owner, _broadcast(item.shape, owner))


def _broadcast(shape: Sequence[int], owner: ShardedTensor) -> SplitDims:
    """How a tensor that broadcasts to the owner must lie for each rank to have what its shard needs."""
    assert owner.placement is not None
    new = owner.dim() - len(shape)
    if not new and shape == owner.shape:
        return owner.placement.dims
    return tuple(
        (dim - new, own)
        for dim, own in owner.placement.dims
        if dim >= new and shape[dim - new] == owner.shape[dim]
    )


def _own_verdicts(
    values: Values, columns: dict[str, Column], mesh: Mesh
) -> tuple[torch.Tensor | None, dict[str, Column]]:
    """Where ranks write whether they found an infinity (GradScaler): each into a number of its own."""
    found = values.get("found_inf")
    if found is None or "inv_scale" not in values:
        return None, columns
    own = [found.to(mesh.devices[rank], copy=True) for rank in mesh.owned]
    return found, {**columns, "found_inf": own}


def by_reduction(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One number from a tensor, or one from each of a list; None where that needs the gathered whole."""
    if func is _LIST_NORM:
        norm = aten.linalg_vector_norm.default
        return [norm(item, *args[1:], **kwargs) for item in args[0]]
    joined = _JOINED.get(func)
    owner = args[0]
    if joined is None or not _divided(owner) or not _to_a_number(func, args, kwargs):
        return None
    if not owner.placement:
        return func(owner.shards[0], *args[1:], **kwargs)
    shards = unseen_shards(owner)
    if shards is None:
        return None
    if owner.mesh.group is None:
        shards = [shard for shard in shards if shard.numel()]
    elif not _has_a_value_of_nothing(func, args):  # for all processes alike, whatever they have
        return None
    numbers = on_each(owner.mesh, func, [shards, *([arg] * len(shards) for arg in args[1:])], kwargs)
    if not numbers:
        return None
    return joined(from_all(torch.stack([one.to(owner.device) for one in numbers]), owner.mesh), *args[1:])


def _has_a_value_of_nothing(func: Any, args: Sequence[Any]) -> bool:
    """Whether a reduction of no elements changes nothing when it is joined with others."""
    if func is aten.linalg_vector_norm.default:
        return len(args) < 2 or args[1] != float("inf")
    return func in (aten.all.default, aten.any.default)


def _to_a_number(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether no dimension is left, and each rank's result says enough."""
    if func is not aten.linalg_vector_norm.default:
        return len(args) == 1
    plain = len(args) <= 2 and not {"dim", "keepdim"} & set(kwargs)
    order = args[1] if len(args) > 1 else 2
    return plain and isinstance(order, (int, float)) and order > 0


def unseen_shards(tensor: ShardedTensor) -> list[torch.Tensor] | None:
    """Of a split tensor, what each owned rank has that no earlier one does; None if that cannot be said."""
    assert tensor.shards is not None and tensor.placement is not None
    if len(tensor.placement.dims) != 1 or tensor.placement.unfolding:
        return None
    ((dim, owned),) = tensor.placement.dims
    own = zip(tensor.mesh.owned, tensor.shards, strict=True)
    return [take(shard, ((dim, (unseen(owned, rank),)),), 0) for rank, shard in own]


def _norm(norms: torch.Tensor, order: float = 2) -> torch.Tensor:
    joined: torch.Tensor = torch.linalg.vector_norm(norms, order)
    return joined


_JOINED: dict[Any, Callable[..., torch.Tensor]] = {
    aten.linalg_vector_norm.default: _norm,
    aten.max.default: torch.amax,
    aten.min.default: torch.amin,
    aten.all.default: torch.all,
    aten.any.default: torch.any,
}
_LIST_NORM = aten._foreach_norm.Scalar
REDUCTIONS = frozenset({*_JOINED, _LIST_NORM})  # those that `by_reduction` knows
