"""What programs that know nothing of shards ask a sharded tensor for: boxes, arrays, addresses."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from ..checkpoint.torch_dcp import Box, box_at, boxes_of, write_items
from ..errors import ShardingError
from ..ir.shards import Shards
from ..runtime.mesh import Mesh
from .storage import Fake, Sharded, Storage, Unsharded, ViewOf

# No processor has memory at such an address.
_NOWHERE = 1 << 62


def parameter_of(data: Any, requires_grad: Any) -> Any:
    """What `type(weight)(data, requires_grad)` makes where a weight is split: a parameter, as of a plain one.

    In the place of a weight it is one of the model's from its next call on.

    Raises:
        ShardingError: the data has no contents.
    """
    if isinstance(data, torch.Tensor) and data.is_meta:
        raise ShardingError(
            f"a split weight of {list(data.shape)} cannot be left on meta, without contents, as offloading "
            "to the CPU or a disk does: each device keeps its share; call tpfx.unshard(model) before that"
        )
    return torch.nn.Parameter(data, requires_grad)


class Outside(torch.Tensor):
    """A tensor that can be handed to others: whole, in memory of its own, or to torch.distributed.checkpoint
    shard by shard."""

    mesh: Mesh

    @property
    def held(self) -> Storage:
        """How the tensor is held."""
        raise NotImplementedError

    def full(self, device: torch.device | str | None = None) -> torch.Tensor:
        """The whole."""
        raise NotImplementedError

    def numpy(self, *, force: bool = False) -> Any:
        """The whole tensor as an array, of its own memory."""
        if self.requires_grad and not force:
            raise RuntimeError("a tensor that requires grad has no numpy(); use tensor.detach().numpy()")
        return self.full("cpu" if force else None).numpy(force=force)

    def tolist(self) -> Any:
        """The whole tensor as nested lists."""
        return self.full().tolist()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if not self.dim() else super().__format__(spec)  # type: ignore[no-untyped-call]

    def __dlpack__(self, **given: Any) -> Any:
        """The whole tensor for another library, of its own memory."""
        if self.requires_grad:
            raise BufferError("a tensor that requires grad cannot be exported; use tensor.detach()")
        return self.full().__dlpack__(**given)

    @property
    def __cuda_array_interface__(self) -> Any:
        """What libraries for GPUs look for; they keep this tensor alive, which has not what they read."""
        if self.device.type == "cuda":
            self._refuse("has no memory to read", "pass tensor.full()")
        raise AttributeError("a tensor that is not on a GPU has no __cuda_array_interface__")

    def share_memory_(self) -> NoReturn:
        """Move to memory that processes share.

        Raises:
            ShardingError: what is split cannot be moved there.
        """
        self._refuse("cannot be shared between processes", "share what tpfx.full_state_dict(model) gives")

    def storage(self) -> Any:
        """Savers ask for it; a state dict's tensors have one.

        Raises:
            ShardingError: what is split has none.
        """
        self._refuse("has no address", "save model.state_dict(), or what tpfx.full_state_dict(model) gives")

    def _refuse(self, what: str, remedy: str) -> NoReturn:
        raise ShardingError(f"{self!r} lies in shards, and {what}: {remedy}")

    def data_ptr(self) -> int:
        """A number by which tied tensors are known, and told from others; nothing can be read there."""
        match self.held:
            case Sharded(shards):
                first = next((shard.data_ptr() for shard in shards if shard.numel()), 0)
            case Unsharded() as held:
                return held.whole.data_ptr()
            case ViewOf(base):
                first = base.data_ptr()
            case Fake():
                first = 0
        return first | _NOWHERE if first else 0

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
