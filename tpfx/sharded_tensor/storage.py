"""The memory behind sharded tensors: undivided wholes, and the parts that ranks have of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..ir.shards import Shards, SplitDims
from ..kernels.slices import fold, join, local_shape, take, unfold_part, whole_shape
from ..runtime.mesh import Mesh
from ..runtime.processes import from_all

if TYPE_CHECKING:
    from ..checkpoint.safetensors_files import Stored


class Undivided:
    """A whole tensor until a graph divides it, shared by every alias of it; afterwards what it became.

    It may be `stored` in a file, and be without contents itself.
    """

    __slots__ = ("parts", "placement", "stored", "whole")

    def __init__(self, whole: torch.Tensor, stored: Stored | None = None) -> None:
        self.whole: torch.Tensor | None = whole
        self.stored = stored
        self.parts: tuple[torch.Tensor, ...] | None = None
        self.placement: Shards | None = None

    def divide(self, layout: Shards, mesh: Mesh) -> None:
        """Give each owned rank its part, and let the whole go."""
        assert self.whole is not None, "it is divided already"
        if self.stored is None:
            self.parts = split_among(self.whole, layout, mesh)
        else:
            shape, dtype = self.whole.shape, self.whole.dtype
            self.parts = tuple(
                torch.empty(local_shape(shape, layout.dims, rank), dtype=dtype, device=mesh.devices[rank])
                for rank in mesh.owned
            )
        self.placement, self.whole = layout, None

    @property
    def nbytes(self) -> int:
        """Bytes of what this process has of it."""
        held = self.parts if self.whole is None else (self.whole,)
        return sum(tensor.nbytes for tensor in held or ())

    def read(self, mesh: Mesh) -> None:
        """Take the contents from the file, as the graphs have divided them or whole."""
        assert self.stored is not None, "it is read already"
        if self.whole is not None:
            self.whole = torch.empty(self.whole.shape, dtype=self.whole.dtype, device="cpu")
            self.stored.read(self.whole, (), 0)
        else:
            assert self.parts is not None and self.placement is not None
            for rank, part in zip(mesh.owned, self.parts, strict=True):
                self.stored.read(part, self.placement.dims, rank)
        self.stored = None


@dataclass
class Unread:
    """While files are not yet read: what a sharded tensor stands for, without contents, and its memory."""

    original: torch.Tensor
    memory: Undivided


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
    """The part of each owned rank, in memory of its own, on its device."""
    with torch.inference_mode(False), torch.no_grad():
        return tuple(_own(take(whole, layout.dims, rank), whole, mesh.devices[rank]) for rank in mesh.owned)


def folded_whole_of(parts: Sequence[torch.Tensor], layout: Shards, mesh: Mesh) -> torch.Tensor:
    """The same, where the split goes through a dimension of a varying size."""
    ranks = zip(mesh.owned, parts, strict=True)
    apart = [unfold_part(part, layout.dims, rank, layout.unfolding) for rank, part in ranks]
    shape = whole_shape(apart[0].shape, layout.dims)
    return fold(whole_of(apart, layout.dims, shape, mesh), layout.unfolding)


def whole_of(
    parts: Sequence[torch.Tensor], dims: SplitDims, shape: Sequence[int], mesh: Mesh
) -> torch.Tensor:
    """The whole of a divided tensor, on the device of the first part: from this process, or from all."""
    return join(parts if mesh.group is None else _parts_of_all(parts, dims, shape, mesh), dims, shape)


def _parts_of_all(
    parts: Sequence[torch.Tensor], dims: SplitDims, shape: Sequence[int], mesh: Mesh
) -> list[torch.Tensor]:
    """The parts of all ranks, on the device of the first of this process; padded for the message."""
    shapes = [local_shape(shape, dims, rank) for rank in range(mesh.size)]
    counts = [math.prod(each) for each in shapes]
    rows = parts[0].new_zeros((len(parts), max(counts)))
    for row, part in zip(rows, parts, strict=True):
        row[: part.numel()].view(part.shape).copy_(part)
    found = zip(from_all(rows, mesh), counts, shapes, strict=True)
    return [row[:count].view(each) for row, count, each in found]


def _own(part: torch.Tensor, whole: torch.Tensor, device: torch.device) -> torch.Tensor:
    part = part.detach().to(device).contiguous()
    return part.clone() if same_memory(part, whole) else part
