"""Shards of tensors: taking a rank's, joining all, and what else a rank's graph calls, made of ATen ops."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..ir.layout import Unfolding
from ..ir.shards import Pieces, Shards, SplitDims

aten = torch.ops.aten
c10d = torch.ops._c10d_functional


def take(whole: torch.Tensor, dims: SplitDims, rank: int) -> torch.Tensor:
    """A rank's shard of a whole tensor; a view where it is one interval of each dimension."""
    for dim, owned in dims:
        own = [whole.narrow(dim, start, stop - start) for start, stop in owned[rank]]
        whole = own[0] if len(own) == 1 else torch.cat(own, dim) if own else whole.narrow(dim, 0, 0)
    return whole


def shard_pieces(
    shape: Sequence[int], dims: SplitDims, rank: int, rows: int
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """The pieces of a rank's shard, of so many rows at most: where each lies in the whole and in it."""
    owned, sides = dict(dims), []
    for dim, extent in enumerate(shape):
        side, offset = [], 0
        for start, stop in owned[dim][rank] if dim in owned else ((0, extent),):
            for low in range(start, stop, rows if dim == 0 else max(1, stop - start)):
                size = min(rows, stop - low) if dim == 0 else stop - low
                side.append((slice(low, low + size), slice(offset, offset + size)))
                offset += size
        sides.append(side)
    for piece in itertools.product(*sides):
        yield tuple(there for there, _ in piece), tuple(here for _, here in piece)


def take_unfolded(whole: torch.Tensor, dims: SplitDims, rank: int, unfolding: Unfolding) -> torch.Tensor:
    """`take`, of a tensor some of whose dimensions are products of a size that varies."""
    return fold(take(_unfold(whole, unfolding), dims, rank), unfolding)


def _unfold(value: torch.Tensor, unfolding: Unfolding) -> torch.Tensor:
    for dim, sizes in unfolding:
        value = value.unflatten(dim, sizes)
    return value


def fold(value: torch.Tensor, unfolding: Unfolding) -> torch.Tensor:
    """The products of dimensions that `unfold_shard` took apart."""
    for dim, sizes in reversed(unfolding):
        value = value.flatten(dim, dim + len(sizes) - 1)
    return value


def join_shards(shards: Sequence[torch.Tensor], dims: SplitDims, shape: Sequence[int]) -> torch.Tensor:
    """The whole tensor, from the shard of every rank."""
    whole = shards[0].new_empty(tuple(shape))
    for rank, shard in enumerate(shards):
        _paste(whole, shard, [(dim, owned[rank]) for dim, owned in dims])
    return whole


def _paste(whole: torch.Tensor, shard: torch.Tensor, dims: Sequence[tuple[int, Pieces]]) -> None:
    if not dims:
        whole.copy_(shard)
        return
    (dim, intervals), *rest = dims
    offset = 0
    for start, stop in intervals:
        _paste(whole.narrow(dim, start, stop - start), shard.narrow(dim, offset, stop - start), rest)
        offset += stop - start


def unfold_shard(shard: torch.Tensor, dims: SplitDims, rank: int, unfolding: Unfolding) -> torch.Tensor:
    """A rank's shard with dimensions of a varying size taken apart, split factors as large as it holds."""
    own = {dim: sum(stop - start for start, stop in owned[rank]) for dim, owned in dims}
    for dim, sizes in unfolding:
        first = dim + sum(len(others) - 1 for other, others in unfolding if other < dim)
        shard = shard.unflatten(dim, [own.get(first + at, size) for at, size in enumerate(sizes)])
    return shard


def whole_shape(shape: Sequence[int], dims: SplitDims) -> list[int]:
    """The shape of a whole tensor, from that of a shard: some rank holds the end of each split dimension."""
    ends = {dim: max(stop for pieces in owned for _, stop in pieces) for dim, owned in dims}
    return [ends.get(dim, extent) for dim, extent in enumerate(shape)]


def local_shape(shape: Sequence[int], dims: SplitDims, rank: int) -> list[int]:
    """The shape of a rank's shard of a tensor."""
    local = list(shape)
    for dim, owned in dims:
        local[dim] = sum(stop - start for start, stop in owned[rank])
    return local


def restride(tensor: torch.Tensor, stride: Sequence[int], offset: Any) -> torch.Tensor:
    """A plain tensor of the same numbers with these strides, at this offset of its memory."""
    if tensor.stride() == tuple(stride) and tensor.storage_offset() == offset:
        return tensor
    sizes = [1 if step == 0 else size for size, step in zip(tensor.shape, stride, strict=True)]
    room = offset + 1 + sum((size - 1) * step for size, step in zip(sizes, stride, strict=True))
    made = tensor.new_empty(room if tensor.numel() else offset)
    if tensor.numel():
        once = tensor
        for dim, size in enumerate(sizes):
            once = once.narrow(dim, 0, size)
        made.as_strided(sizes, stride, offset).copy_(once)
    return made.as_strided(tensor.shape, stride, offset)


def dense_rows(value: torch.Tensor) -> torch.Tensor:
    """A tensor whose last dimension lies densely: the same one, if it does."""
    return value if value.dim() == 0 or value.stride(-1) == 1 else value.contiguous()


def shard_of(whole: torch.Tensor, layout: Shards, rank: int) -> torch.Tensor:
    """What a rank should have of a value."""
    if layout.unfolding:
        return take_unfolded(whole, layout.dims, rank, layout.unfolding)
    return take(whole, layout.dims, rank)
