"""What torch.distributed.checkpoint asks of a sharded tensor: boxes of the whole, and their memory."""

from __future__ import annotations

from typing import Any

import torch

from ..checkpoint.torch_dcp import Box, box_at, boxes_of, write_items
from ..errors import ShardingError
from ..ir.shards import Shards
from ..runtime.mesh import Mesh
from .storage import Fake, Sharded, Storage, Unsharded, ViewOf


class InCheckpoints(torch.Tensor):
    """A tensor that torch.distributed.checkpoint saves and loads shard by shard."""

    mesh: Mesh

    @property
    def held(self) -> Storage:
        """How the tensor is held."""
        raise NotImplementedError

    def __create_write_items__(self, name: str, _: Any) -> list[Any]:
        """What torch.distributed.checkpoint writes."""
        return write_items(name, self, self._boxes())

    def __create_chunk_list__(self) -> list[Any]:
        """What torch.distributed.checkpoint reads."""
        return [box.chunk for box in self._boxes()]

    def __get_tensor_shard__(self, index: Any) -> torch.Tensor:
        """The memory that torch.distributed.checkpoint reads from or writes to."""
        box = box_at(self._boxes(), index)
        match self.held:
            case Sharded(shards):
                return box.of(shards[box.holder].detach())
            case Unsharded() as held:
                return box.of(held.whole.detach())
            case ViewOf() | Fake():
                raise ShardingError(f"{self!r} has no memory of its own: save and load its base instead")

    def _boxes(self) -> list[Box]:
        """What the ranks of this process hold; what is not sharded yet counts as held by the first."""
        held = self.held
        if isinstance(held, Sharded):
            return boxes_of(self.shape, held.placement, self.mesh.owned)
        return boxes_of(self.shape, Shards(), self.mesh.owned[:1])
