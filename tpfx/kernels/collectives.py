"""What a rank's graph calls to communicate beyond one functional collective, made of ATen ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch

from ..ir.layout import Unfolding
from ..ir.shards import SplitDims
from ..torch_internals.pytree import tree_leaves, tree_map_only
from .slices import c10d, fold, join_shards, local_shape, unfold_shard


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


def broadcast_random(draws: bool, group: str, op: Any, named: Mapping[str, Any]) -> list[torch.Tensor]:
    """The results of an op that draws random numbers, those of rank 0.

    The rank threads of a process share the caller's generator: its first draws, the others make room.
    Processes have one each, which all of them advance.
    """
    schema = op._schema.arguments
    args = [named[argument.name] for argument in schema if not argument.kwarg_only]
    kwargs = {argument.name: named[argument.name] for argument in schema if argument.kwarg_only}
    made = tree_leaves(op(*args, **kwargs)) if draws else _room_for(op, args, kwargs)
    return [_sent(c10d.broadcast, result, 0, group) for result in made]


def _sent(collective: Any, value: torch.Tensor, number: int, group: str) -> torch.Tensor:
    """A functional collective of a tensor.

    Booleans are sent as bytes: of booleans and a number, Inductor makes 64-bit integers (torch 2.13).
    """
    if value.dtype is torch.bool:
        return _sent(collective, value.view(torch.uint8), number, group).view(torch.bool)
    found: torch.Tensor = c10d.wait_tensor(collective(value, number, group))
    return found


def _room_for(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Tensors of the shapes that an op returns, which the meta device tells without drawing anything."""
    device = next((arg.device for arg in args if isinstance(arg, torch.Tensor)), kwargs.get("device"))
    args = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), args)
    elsewhere = {"device": torch.device("meta"), "generator": None}
    changed = {name: elsewhere.get(name, value) for name, value in kwargs.items()}
    results = tree_leaves(op(*args, **changed))
    return [torch.empty_like(result, device=device or "cpu") for result in results]


_JOIN: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
}


def combine_partials(partials: Sequence[torch.Tensor], op: str) -> torch.Tensor:
    """The value of which every rank has a partial sum."""
    return reduce(_JOIN[op], partials)
