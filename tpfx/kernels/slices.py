"""Parts of tensors: taking a rank's, joining all, and what else a rank's graph calls, made of ATen ops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from .layout import Pieces, SplitDims, Unfolding

aten = torch.ops.aten
c10d = torch.ops._c10d_functional


def embedding_shard(weight: torch.Tensor, ids: torch.Tensor, owned: Pieces, size: int) -> torch.Tensor:
    """The rows of a table of `size` rows that a rank owns, looked up; zero for ids of other ranks."""
    if not owned:
        return weight.new_zeros((*ids.shape, weight.shape[-1]))
    here, elsewhere = place(ids, owned, size)
    rows: torch.Tensor = aten.embedding(weight, here.masked_fill(elsewhere, 0))
    return rows.masked_fill(elsewhere.unsqueeze(-1), 0)


def gather_shard(part: torch.Tensor, dim: int, index: torch.Tensor, owned: Pieces, size: int) -> torch.Tensor:
    """`gather` along a dimension of which a rank owns some; zero for what other ranks own."""
    if not owned:
        return part.new_zeros(index.shape)
    here, elsewhere = place(index, owned, size)
    found: torch.Tensor = aten.gather(part, dim, here.masked_fill(elsewhere, 0))
    return found.masked_fill(elsewhere, 0)


def place(ids: torch.Tensor, owned: Pieces, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where ids of a dimension of `size` lie in a rank's part of it, and which belong to other ranks.

    An id outside the whole stays outside the part as well, so that the lookup itself reports it.
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
    op: Any, part: torch.Tensor, dim: int, index: torch.Tensor, *rest: Any, owned: Pieces, size: int
) -> torch.Tensor:
    """A scatter along a dimension of which a rank owns some: one index more takes what others own."""
    length = part.shape[dim]
    here, elsewhere = place(index, owned, size)
    room = torch.cat((part, part.narrow(dim, 0, 1) if length else _one(part, dim)), dim)
    written: torch.Tensor = op(room, dim, here.masked_fill(elsewhere, length), *rest)
    return written.narrow(dim, 0, length)


def _one(part: torch.Tensor, dim: int) -> torch.Tensor:
    shape = list(part.shape)
    shape[dim] = 1
    return part.new_zeros(shape)


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


def take(whole: torch.Tensor, dims: SplitDims, rank: int) -> torch.Tensor:
    """A rank's part of a whole tensor; a view where it is one interval of each dimension."""
    for dim, owned in dims:
        parts = [whole.narrow(dim, start, stop - start) for start, stop in owned[rank]]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim) if parts else whole.narrow(dim, 0, 0)
    return whole


def boxes(
    shape: Sequence[int], dims: SplitDims, rank: int, rows: int
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """The pieces of a rank's part, of so many rows at most: where each lies in the whole, and in the part."""
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
    """The products of dimensions that `unfold_part` took apart."""
    for dim, sizes in reversed(unfolding):
        value = value.flatten(dim, dim + len(sizes) - 1)
    return value


def join(parts: Sequence[torch.Tensor], dims: SplitDims, shape: Sequence[int]) -> torch.Tensor:
    """The whole tensor, from the part of every rank."""
    whole = parts[0].new_empty(tuple(shape))
    for rank, part in enumerate(parts):
        _paste(whole, part, [(dim, owned[rank]) for dim, owned in dims])
    return whole


def _paste(whole: torch.Tensor, part: torch.Tensor, dims: Sequence[tuple[int, Pieces]]) -> None:
    if not dims:
        whole.copy_(part)
        return
    (dim, intervals), *rest = dims
    offset = 0
    for start, stop in intervals:
        _paste(whole.narrow(dim, start, stop - start), part.narrow(dim, offset, stop - start), rest)
        offset += stop - start


def gather_shards(
    part: torch.Tensor,
    dims: SplitDims,
    shape: Sequence[int],
    rank: int,
    ranks: int,
    group: str,
    unfolding: Unfolding,
) -> torch.Tensor:
    """The whole tensor on every rank; shards of unequal size are padded for the message."""
    part = unfold_part(part, dims, rank, unfolding)
    shape = [extent if index not in dict(dims) else shape[index] for index, extent in enumerate(part.shape)]
    shapes = [local_shape(shape, dims, each) for each in range(ranks)]
    counts = [math.prod(each) for each in shapes]
    flat = part.reshape(-1)
    flat = (
        torch.nn.functional.pad(flat, (0, max(counts) - flat.shape[0]))
        if flat.shape[0] < max(counts)
        else flat
    )
    gathered = _sent(c10d.all_gather_into_tensor, flat.contiguous(), ranks, group).view(ranks, -1)
    parts = [
        gathered[each, :count].view(size)
        for each, (count, size) in enumerate(zip(counts, shapes, strict=True))
    ]
    return fold(join(parts, dims, shape), unfolding)


def unfold_part(part: torch.Tensor, dims: SplitDims, rank: int, unfolding: Unfolding) -> torch.Tensor:
    """A rank's part with dimensions of a varying size taken apart, the split factors as large as it holds."""
    own = {dim: sum(stop - start for start, stop in owned[rank]) for dim, owned in dims}
    for dim, sizes in unfolding:
        first = dim + sum(len(others) - 1 for other, others in unfolding if other < dim)
        part = part.unflatten(dim, [own.get(first + at, size) for at, size in enumerate(sizes)])
    return part


def whole_shape(shape: Sequence[int], dims: SplitDims) -> list[int]:
    """The shape of a whole tensor, from that of a part: somebody holds the end of each split dimension."""
    ends = {dim: max(stop for pieces in owned for _, stop in pieces) for dim, owned in dims}
    return [ends.get(dim, extent) for dim, extent in enumerate(shape)]


def local_shape(shape: Sequence[int], dims: SplitDims, rank: int) -> list[int]:
    """The shape of a rank's part of a tensor."""
    local = list(shape)
    for dim, owned in dims:
        local[dim] = sum(stop - start for start, stop in owned[rank])
    return local


def draw(draws: bool, group: str, op: Any, named: Mapping[str, Any]) -> list[torch.Tensor]:
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
    """A functional collective of a tensor, as bytes where it is of booleans: of those and a number, Inductor
    makes 64-bit integers (torch 2.13)."""
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
