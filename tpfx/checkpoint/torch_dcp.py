"""How torch.distributed.checkpoint saves and loads a ShardedTensor: as boxes of the whole.

    dcp.save(model.state_dict(), checkpoint_id="folder")      # split over two devices
    state = other.state_dict()                                # of the model split over three
    dcp.load(state, checkpoint_id="folder")                   # into place

Every element is written once, by the first rank that has it, and read by every rank that needs it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from ..ir.layout import Interval
from ..ir.shards import Pieces, Shards, minus, unseen

if TYPE_CHECKING:
    from ..sharded_tensor.tensor import ShardedTensor


@dataclass(frozen=True)
class Box:
    """A rectangle of a tensor that lies in one piece in the part of a rank.

    Attributes:
        holder: which of the parts of this process.
        offsets, sizes: of the whole tensor.
        starts: where it begins in the part.
        first: whether no earlier rank has it.
    """

    holder: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    first: bool

    def of(self, part: torch.Tensor) -> torch.Tensor:
        """A view of the rank's part."""
        for dim, (start, size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            part = part.narrow(dim, start, size)
        return part

    @property
    def chunk(self) -> ChunkStorageMetadata:
        """The same in torch's words."""
        return ChunkStorageMetadata(torch.Size(self.offsets), torch.Size(self.sizes))


def boxes_of(tensor: ShardedTensor) -> list[Box]:
    """What the ranks of this process hold."""
    if tensor.shards is None or not tensor.placement:
        held = [tensor._whole] if tensor.shards is None else list(tensor.shards)
        zeros = (0,) * tensor.dim()
        return [Box(at, zeros, tuple(tensor.shape), zeros, at == 0) for at in range(len(held))]
    return [
        box
        for at, rank in enumerate(tensor.mesh.owned)
        for box in _boxes(tensor.shape, tensor.placement, rank, at)
    ]


def _boxes(shape: torch.Size, placement: Shards, rank: int, holder: int) -> list[Box]:
    pieces = [[((0, extent), 0, True)] for extent in shape]
    for dim, owned in placement.dims:
        pieces[dim] = _pieces(owned, rank)
    split, found = [dim for dim, _ in placement.dims], []
    for combined in itertools.product(*pieces):
        offsets = tuple(start for (start, _), _, _ in combined)
        sizes = tuple(stop - start for (start, stop), _, _ in combined)
        starts = tuple(start for _, start, _ in combined)
        first = combined[split[0]][2] if len(split) == 1 else not _held_before(combined, placement, rank)
        if 0 not in sizes:
            found.append(Box(holder, offsets, sizes, starts, first))
    return found


def _held_before(combined: Sequence[tuple[Interval, int, bool]], placement: Shards, rank: int) -> bool:
    """Whether an earlier rank has all of a box of a tensor that is split along several dimensions."""
    return any(
        all(
            any(low <= combined[dim][0][0] and combined[dim][0][1] <= high for low, high in owned[other])
            for dim, owned in placement.dims
        )
        for other in range(rank)
    )


def _pieces(owned: tuple[Pieces, ...], rank: int) -> list[tuple[Interval, int, bool]]:
    """A rank's intervals of a dimension, cut where what earlier ranks have begins or ends: each with where it
    begins in the part, and whether no earlier rank has it."""
    fresh = unseen(owned, rank)
    found, offset = [], 0
    for start, stop in owned[rank]:
        inside = [(max(a, offset), min(b, offset + stop - start)) for a, b in fresh]
        news = [(a, b) for a, b in inside if a < b]
        known = minus([(offset, offset + stop - start)], news)
        for a, b in sorted([*news, *known]):
            found.append(((start + a - offset, start + b - offset), a, (a, b) in news))
        offset += stop - start
    return found


def write_items(name: str, tensor: ShardedTensor) -> list[WriteItem]:
    """What this process writes of a tensor."""
    properties = TensorProperties.create_from_tensor(tensor)
    return [
        WriteItem(
            index=MetadataIndex(name, torch.Size(box.offsets), at),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(box.chunk, properties, tensor.size()),
        )
        for at, box in enumerate(boxes_of(tensor))
        if box.first
    ]


def box_at(tensor: ShardedTensor, index: MetadataIndex) -> torch.Tensor:
    """The memory of one of the boxes, to be read or written into."""
    boxes, offset = boxes_of(tensor), tuple(index.offset or ())
    own = boxes[index.index : index.index + 1] if index.index is not None else []  # on loading, of this list
    box = next(box for box in (*own, *boxes) if box.offsets == offset)
    part = tensor._whole if tensor.shards is None else tensor.shards[box.holder]
    assert part is not None
    return box.of(part.detach())
