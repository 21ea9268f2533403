"""Lookups and writes by index in the shard of a dimension that a rank owns, made of ATen ops."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from ..ir.shards import Pieces
from .slices import aten


def embedding_shard(weight: torch.Tensor, ids: torch.Tensor, owned: Pieces, size: int) -> torch.Tensor:
    """The rows of a table of `size` rows that a rank owns, looked up; zero for ids of other ranks."""
    if not owned:
        return weight.new_zeros((*ids.shape, weight.shape[-1]))
    here, elsewhere = place(ids, owned, size)
    rows: torch.Tensor = aten.embedding(weight, here.masked_fill(elsewhere, 0))
    return rows.masked_fill(elsewhere.unsqueeze(-1), 0)


def gather_shard(
    shard: torch.Tensor, dim: int, index: torch.Tensor, owned: Pieces, size: int
) -> torch.Tensor:
    """`gather` along a dimension of which a rank owns some; zero for what other ranks own."""
    if not owned:
        return shard.new_zeros(index.shape)
    here, elsewhere = place(index, owned, size)
    found: torch.Tensor = aten.gather(shard, dim, here.masked_fill(elsewhere, 0))
    return found.masked_fill(elsewhere, 0)


def place(ids: torch.Tensor, owned: Pieces, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where ids of a dimension of `size` lie in a rank's shard of it, and which belong to other ranks.

    An id outside the whole stays outside the shard as well, so that the lookup itself reports it.
    """
    if len(owned) == 1:
        ((start, stop),) = owned
        return ids - start, ((ids >= 0) & (ids < start)) | ((ids >= stop) & (ids < size))
    here, held, offset = ids.new_full((), -1).expand(ids.shape), torch.zeros_like(ids, dtype=torch.bool), 0
    for start, stop in owned:
        inside = (ids >= start) & (ids < stop)
        here, held = torch.where(inside, ids - (start - offset), here), held | inside
        offset += stop - start
    return torch.where((ids >= 0) & (ids < size), here, offset), ~held & (ids >= 0) & (ids < size)


def scatter_shard(
    op: Any, shard: torch.Tensor, dim: int, index: torch.Tensor, *rest: Any, owned: Pieces, size: int
) -> torch.Tensor:
    """A scatter along a dimension of which a rank owns some: one index more takes what others own."""
    length = shard.shape[dim]
    here, elsewhere = place(index, owned, size)
    room = torch.cat((shard, shard.narrow(dim, 0, 1) if length else _one(shard, dim)), dim)
    written: torch.Tensor = op(room, dim, here.masked_fill(elsewhere, length), *rest)
    return written.narrow(dim, 0, length)


def _one(shard: torch.Tensor, dim: int) -> torch.Tensor:
    shape = list(shard.shape)
    shape[dim] = 1
    return shard.new_zeros(shape)


def embedding_backward_shard(
    gradient: torch.Tensor, ids: torch.Tensor, padding: int, owned: Pieces, size: int
) -> torch.Tensor:
    """The gradient of the rows that a rank owns; one row more takes that of other ranks' rows."""
    length = sum(stop - start for start, stop in owned)
    here, elsewhere = place(ids, owned, size)
    there = elsewhere | (ids == padding)
    made: torch.Tensor = aten.embedding_dense_backward(
        gradient, here.masked_fill(there, length), length + 1, -1, False
    )
    return made.narrow(0, 0, length)


def scaled_shard(
    numbers: torch.Tensor,
    scales: torch.Tensor,
    table: torch.Tensor,
    block: int,
    dtype: torch.dtype,
    owned: Pieces,
) -> torch.Tensor:
    """Numbers that a rank owns of many, looked up in a table and scaled: each block has one of the scales."""
    found: torch.Tensor = aten.index(table, [numbers.to(torch.int64)])
    own: torch.Tensor = aten.index_select(scales, 0, _blocks(owned, block, scales.device))
    return (found * own).to(dtype)


@lru_cache(maxsize=256)
def _blocks(owned: Pieces, block: int, device: torch.device) -> torch.Tensor:
    """The block of each index that is owned."""
    parts = [torch.arange(start, stop) for start, stop in owned] or [torch.arange(0)]
    return (torch.cat(parts) // block).to(torch.int32).to(device)
