"""How torch.distributed.checkpoint saves and loads a sharded tensor: as boxes of the whole.

    dcp.save(model.state_dict(), checkpoint_id="folder")      # split over two devices
    state = other.state_dict()                                # of the model split over three
    dcp.load(state, checkpoint_id="folder")                   # into place

Every element is written once, by the first rank that has it, and read by every rank that needs it.

torch.distributed.checkpoint takes a third of a second to import: who saves or loads has imported it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..ir.layout import Interval
from ..ir.shards import Pieces, Shards, minus, unseen

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
    from torch.distributed.checkpoint.planner import WriteItem


@dataclass(frozen=True)
class Box:
    """A rectangle of a tensor that lies in one piece in a rank's shard.

    Attributes:
        holder: which of the shards of this process.
        offsets, sizes: of the whole tensor.
        starts: where it begins in the shard.
        first: whether no earlier rank has it.
    """

    holder: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    first: bool

    def of(self, shard: torch.Tensor) -> torch.Tensor:
        """A view of the rank's shard."""
        for dim, (start, size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            shard = shard.narrow(dim, start, size)
        return shard

    @property
    def chunk(self) -> ChunkStorageMetadata:
        """The same in torch's words."""
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        return ChunkStorageMetadata(torch.Size(self.offsets), torch.Size(self.sizes))


def boxes_of(shape: Sequence[int], placement: Shards, owned: Sequence[int]) -> list[Box]:
    """What the owned ranks hold of a tensor of this shape, in their order; `Shards()`: each has all of it."""
    if not placement:
        zeros = (0,) * len(shape)
        return [Box(at, zeros, tuple(shape), zeros, at == 0) for at in range(len(owned))]
    return [box for at, rank in enumerate(owned) for box in _boxes(shape, placement, rank, at)]


def _boxes(shape: Sequence[int], placement: Shards, rank: int, holder: int) -> list[Box]:
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
    begins in the shard, and whether no earlier rank has it."""
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


def write_items(name: str, tensor: torch.Tensor, boxes: Sequence[Box]) -> list[WriteItem]:
    """What this process writes of a tensor, of which it holds these boxes."""
    from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

    properties = TensorProperties.create_from_tensor(tensor)
    return [
        WriteItem(
            index=MetadataIndex(name, torch.Size(box.offsets), at),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(box.chunk, properties, tensor.size()),
        )
        for at, box in enumerate(boxes)
        if box.first
    ]


def box_at(boxes: Sequence[Box], index: MetadataIndex) -> Box:
    """One of the boxes, by the number and the offsets that torch knows it by."""
    offset = tuple(index.offset or ())
    own = boxes[index.index : index.index + 1] if index.index is not None else []  # on loading, of this list
    return next(box for box in (*own, *boxes) if box.offsets == offset)
