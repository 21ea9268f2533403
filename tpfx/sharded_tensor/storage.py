"""How a ShardedTensor is held: in shards, not yet sharded, as a view that is made anew, or fake.

match tensor.held:
    case Sharded(shards, placement): ...   # a shard for each rank that this process owns
    case Sharded(chosen=False): ...       # the same, until a graph chooses another placement
    case Unsharded() as held: ...         # `held.whole`, until a graph chooses a placement
    case ViewOf(base, again): ...         # `again(base.gathered())` whenever it is looked at
    case Fake(): ...                      # while Dynamo captures
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ..checkpoint.safetensors_files import Stored
from ..errors import ShardingError
from ..ir.shards import Shards, SplitDims
from ..kernels.slices import fold, join_shards, local_shape, take, unfold_shard, whole_shape
from ..runtime.mesh import Mesh
from ..runtime.processes import from_all

if TYPE_CHECKING:
    from .tensor import ShardedTensor


class Calls(threading.local):
    """Whether this thread is in a call of a compiled model: eager ops then are those that no graph has."""

    running = False


CALLS = Calls()


@dataclass(frozen=True, slots=True)
class Unread:
    """Whose contents are in a file still.

    Attributes:
        original: the weight, without contents, that a sharded tensor took the place of.
        stored: where the contents are.
    """

    original: torch.Tensor
    stored: Stored


@dataclass(slots=True)
class Sharded:
    """A shard for each rank that this process owns, in order.

    Nobody changes one; that it is frozen would take most of the time in which the hot path makes one.

    Attributes:
        shards: the shards; without contents of their own while they are unread.
        placement: which intervals of which dimensions each rank has.
        unread: the file that has the contents, until they are read.
        chosen: whether a graph has chosen the placement, so that it stays; otherwise any graph may, and the
            shards are in a `Cell`.
    """

    shards: tuple[torch.Tensor, ...]
    placement: Shards
    unread: Unread | None = None
    chosen: bool = True


class Cell:
    """What all aliases of a tensor share whose placement no graph has chosen: the whole, or shards for now,
    and once it is chosen what it became.

    Attributes:
        contents: the whole tensor, or its shards.
        stored: the file that has the contents of a whole without any, until they are read.
        used_eagerly: whether code outside of all graphs has used it in a call of the model.
    """

    __slots__ = ("contents", "stored", "used_eagerly")

    def __init__(self, contents: torch.Tensor | Sharded, stored: Stored | None = None) -> None:
        self.contents = contents
        self.stored = stored
        self.used_eagerly = False

    def fill(self, whole: torch.Tensor) -> None:
        """The contents have been read: `whole` has them."""
        self.contents, self.stored = whole, None

    def lay_out(self, whole: torch.Tensor, layout: Shards, mesh: Mesh, chosen: bool = True) -> None:
        """Hold a shard of `whole` for each owned rank; every alias finds them."""
        if self.stored is None:
            self.contents = Sharded(split_among(whole, layout, mesh), layout, chosen=chosen)
        else:
            shapes = [
                (local_shape(whole.shape, layout.dims, rank), mesh.devices[rank]) for rank in mesh.owned
            ]
            shards = tuple(torch.empty(shape, dtype=whole.dtype, device=device) for shape, device in shapes)
            self.contents = Sharded(shards, layout, Unread(whole, self.stored), chosen)


@dataclass(frozen=True, slots=True)
class Unsharded:
    """No graph has chosen a placement: the whole tensor, where it was. Aliases share the cell."""

    cell: Cell

    @property
    def whole(self) -> torch.Tensor:
        """The whole tensor."""
        assert isinstance(self.cell.contents, torch.Tensor), "it is sharded already"
        return self.cell.contents


@dataclass(frozen=True, slots=True)
class ViewOf:
    """A view that is made anew of the gathered base whenever it is looked at, and written through."""

    base: ShardedTensor
    again: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Fake:
    """Nothing: what a sharded tensor is while Dynamo captures."""


Storage: TypeAlias = Sharded | Unsharded | ViewOf | Fake


def copied(held: Storage, full: Callable[[], torch.Tensor]) -> Storage:
    """How a copy with memory of its own is held; `full` gives that of a view."""
    match held:
        case Sharded(shards):
            copy = replace(held, shards=tuple(shard.clone() for shard in shards))
            return copy if copy.chosen else Unsharded(Cell(copy))
        case Unsharded(cell):
            return Unsharded(Cell(held.whole.detach().clone(), cell.stored))
        case ViewOf():
            return Unsharded(Cell(full()))
        case Fake():
            return held


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a dense tensor; sizes may be symbolic."""
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step = step * (max(extent, 1) if type(extent) is int else extent)
    return tuple(reversed(strides))


@functools.cache
def probe_of(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """What Dynamo sees inside a sharded tensor: one of no elements, shared by all of a kind."""
    with torch.inference_mode(False):
        return torch.empty(0, dtype=dtype, device=device)


def same_memory(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors are views of the same storage."""
    return left.numel() > 0 and left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()


def split_among(whole: torch.Tensor, layout: Shards, mesh: Mesh) -> tuple[torch.Tensor, ...]:
    """The shard of each owned rank, in memory of its own, on its device."""
    with torch.inference_mode(False), torch.no_grad():
        return tuple(_own(take(whole, layout.dims, rank), whole, mesh.devices[rank]) for rank in mesh.owned)


def folded_whole_of(shards: Sequence[torch.Tensor], layout: Shards, mesh: Mesh) -> torch.Tensor:
    """`whole_of`, where the split goes through a dimension of a varying size."""
    ranks = zip(mesh.owned, shards, strict=True)
    apart = [unfold_shard(shard, layout.dims, rank, layout.unfolding) for rank, shard in ranks]
    shape = whole_shape(apart[0].shape, layout.dims)
    return fold(whole_of(apart, layout.dims, shape, mesh), layout.unfolding)


def whole_of(
    shards: Sequence[torch.Tensor], dims: SplitDims, shape: Sequence[int], mesh: Mesh
) -> torch.Tensor:
    """The whole of a divided tensor, on the device of the first shard: from this process, or from all."""
    return join_shards(
        shards if mesh.group is None else _shards_of_all(shards, dims, shape, mesh), dims, shape
    )


def _shards_of_all(
    shards: Sequence[torch.Tensor], dims: SplitDims, shape: Sequence[int], mesh: Mesh
) -> list[torch.Tensor]:
    """The shards of all ranks, on the device of the first of this process; padded for the collective."""
    shapes = [local_shape(shape, dims, rank) for rank in range(mesh.size)]
    counts = [math.prod(each) for each in shapes]
    rows = shards[0].new_zeros((len(shards), max(counts)))
    for row, shard in zip(rows, shards, strict=True):
        row[: shard.numel()].view(shard.shape).copy_(shard)
    found = zip(from_all(rows, mesh), counts, shapes, strict=True)
    return [row[:count].view(each) for row, count, each in found]


def _own(shard: torch.Tensor, whole: torch.Tensor, device: torch.device) -> torch.Tensor:
    shard = shard.detach().to(device).contiguous()
    return shard.clone() if same_memory(shard, whole) else shard


def is_distributed(kind: type) -> bool:
    """Whether tensors of a class lie on a mesh of their own, as torch's DTensors, and can give the whole."""
    return hasattr(kind, "full_tensor")


def refuse_distributed(op: Any, kinds: Sequence[type]) -> None:
    """Refuse an op that takes a split tensor and one that lies on a mesh of its own.

    Raises:
        ShardingError: one of the classes of what it takes is of such tensors.
    """
    other = next(filter(is_distributed, kinds), None)
    if other is not None:
        raise ShardingError(
            f"{op} is given a tensor that tpfx has split and a {other.__name__}, which lies on a mesh of its "
            "own; pass what full_tensor() of that gives"
        )
