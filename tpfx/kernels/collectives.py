"""What a rank's graph calls to communicate beyond one functional collective, made of ATen ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch

from ..ir.layout import Unfolding
from ..ir.shards import SplitDims
from ..torch_internals.fx import tree_leaves, tree_map_only
from .slices import c10d, fold, join_shards, local_shape, unfold_shard

higher_order = torch.ops.higher_order


def gather_shards(
    shard: torch.Tensor,
    dims: SplitDims,
    shape: Sequence[int],
    rank: int,
    ranks: int,
    group: str,
    unfolding: Unfolding,
) -> torch.Tensor:
    """The whole tensor on every rank; shards of unequal size are padded for the collective."""
    shard = unfold_shard(shard, dims, rank, unfolding)
    shape = [extent if index not in dict(dims) else shape[index] for index, extent in enumerate(shard.shape)]
    shapes = [local_shape(shape, dims, each) for each in range(ranks)]
    counts = [math.prod(each) for each in shapes]
    flat = shard.reshape(-1)
    flat = (
        torch.nn.functional.pad(flat, (0, max(counts) - flat.shape[0]))
        if flat.shape[0] < max(counts)
        else flat
    )
    gathered = _sent(c10d.all_gather_into_tensor, flat.contiguous(), ranks, group).view(ranks, -1)
    shards = [
        gathered[each, :count].view(size)
        for each, (count, size) in enumerate(zip(counts, shapes, strict=True))
    ]
    return fold(join_shards(shards, dims, shape), unfolding)


def broadcast_random(draws: bool, group: str, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an op that draws random numbers returns, as rank 0 has drawn it.

    The rank threads of a process share the caller's generator: its first draws, the others make room.
    Processes have one each, which all of them advance.
    """
    return _from_first(op(*args, **kwargs) if draws else _room_for(op, args, kwargs), group)


def broadcast_sized(
    draws: bool,
    group: str,
    op: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    results: Sequence[tuple[torch.dtype, int]],
    alone: bool,
) -> Any:
    """`broadcast_random` of an op whose results have sizes that only values tell: rank 0 sends these first.

    Args:
        draws: whether this rank runs the op.
        group: the ranks.
        op: it returns a tensor, or a tuple or list of them.
        args: its arguments.
        kwargs: those by name.
        results: of each tensor that it returns the dtype, and how many dimensions it has.
        alone: whether it returns a tensor, and no tuple or list.
    """
    device, known = _device_of(args, kwargs), sum(dims for _, dims in results)
    made = op(*args, **kwargs) if draws else None
    own: Sequence[Any] = [None] * len(results) if made is None else [made] if alone else made
    extents = [0] * known if made is None else [extent for one in own for extent in one.shape]
    sizes = _sent(c10d.broadcast, torch.tensor(extents, device=device), 0, group).tolist()
    found = []
    for value, (dtype, dims) in zip(own, results, strict=True):
        shape, sizes = sizes[:dims], sizes[dims:]
        if value is None or list(value.shape) != shape:
            value = torch.empty(shape, dtype=dtype, device=device)
        found.append(_sent(c10d.broadcast, value, 0, group) if value.numel() else value)
    return found[0] if alone else found


def broadcast_and_keep(
    draws: bool, group: str, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[torch.Tensor, Any]:
    """The generator's state, for `broadcast_again`, and what `broadcast_random` then returns.

    The state is empty on ranks that do not draw.
    """
    if not draws:
        return torch.empty(0, dtype=torch.uint8), broadcast_random(draws, group, op, args, kwargs)
    state, made = higher_order.run_and_save_rng_state(op, *args, **kwargs)
    return state, _from_first(made, group)


def broadcast_again(
    draws: bool, group: str, state: torch.Tensor, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """`broadcast_random` of the numbers that come after a state; the generator stays as it is."""
    if not draws:
        return broadcast_random(draws, group, op, args, kwargs)
    return _from_first(higher_order.run_with_rng_state(state, op, *args, **kwargs), group)


BROADCASTS = (broadcast_random, broadcast_sized, broadcast_and_keep, broadcast_again)


def _from_first(made: Any, group: str) -> Any:
    """The tensors of rank 0, in what every rank has of an op's results."""
    return tree_map_only(torch.Tensor, lambda result: _sent(c10d.broadcast, result, 0, group), made)


def _sent(collective: Any, value: torch.Tensor, number: int, group: str) -> torch.Tensor:
    """A functional collective of a tensor.

    Booleans are sent as bytes: of booleans and a number, Inductor makes 64-bit integers (torch 2.13).
    """
    if value.dtype is torch.bool:
        return _sent(collective, value.view(torch.uint8), number, group).view(torch.bool)
    found: torch.Tensor = c10d.wait_tensor(collective(value, number, group))
    return found


def _room_for(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Tensors of the shapes that an op returns, which the meta device tells without drawing anything."""
    device = _device_of(args, kwargs)
    args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
    elsewhere = {"device": torch.device("meta"), "generator": None}
    changed = {name: elsewhere.get(name, value) for name, value in kwargs.items()}
    return tree_map_only(
        torch.Tensor, lambda result: torch.empty_like(result, device=device), op(*args, **changed)
    )


def _device_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    """Where an op's results will be: where its first tensor is."""
    given = (arg.device for arg in tree_leaves((args, kwargs)) if isinstance(arg, torch.Tensor))
    return next(given, kwargs.get("device")) or torch.device("cpu")


_JOIN: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
}


def combine_partials(partials: Sequence[torch.Tensor], op: str) -> torch.Tensor:
    """The value of which every rank has a partial sum."""
    return reduce(_JOIN[op], partials)
