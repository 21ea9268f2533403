"""What a state dict has of a split weight: for those who ask where in memory it lies, it lies whole there.

    safetensors.torch.save_file(model.state_dict(), "model.safetensors")     # reads the memory at data_ptr()
    torch.save(model.state_dict(), "model.pt")                               # tied weights share memory, once

Everything else about it is as of any ShardedTensor: nothing is gathered before someone asks, and what one
writes into it, the model has. What is computed of one is another: a state dict may be rounded and then saved.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from ..torch_internals.fx import tree_map_only
from ..torch_internals.parameter_slots import leaves_of, places_of, with_inside
from .storage import Fake, Sharded, Unsharded, ViewOf, same_memory
from .tensor import ShardedTensor

# The memory of those that have the same shards, as long as one of them lives: by where these lie.
_Key = tuple[int, int, torch.dtype]
_memories: weakref.WeakValueDictionary[_Key, torch.Tensor] = weakref.WeakValueDictionary()


class StateTensor(ShardedTensor):
    """A ShardedTensor with an address."""

    _storage: torch.UntypedStorage | None = None
    _lent: tuple[_Key, torch.Tensor] | None = None  # where it lies whole, once someone has asked

    @property
    def memory(self) -> torch.Tensor:
        """The whole in host memory, which tied weights share; with the contents that `data_ptr` saw last."""
        whole = self._lies_whole()
        if whole is not None:
            return whole
        if isinstance(self.held, ViewOf) and isinstance(base := self.held.base, StateTensor):
            view = self.held.again(base.memory)
            if same_memory(view, base.memory):
                return view
        key = self._key()
        if self._lent is None or self._lent[0] != key:
            made = _memories.get(key)
            if made is None:
                made = torch.empty_strided(self.shape, self.stride(), dtype=self.dtype, device="cpu")
                _memories[key] = made
            self._lent = key, made
        lent = self._lent[1]
        return lent if lent.shape == self.shape else lent.as_strided(self.shape, self.stride())

    def _key(self) -> _Key:
        """What those that lie in the same memory have in common: tied weights, and views of all of one."""
        address = next((shard.data_ptr() for shard in self.shards or () if shard.numel()), id(self.held))
        return address, self.numel(), self.dtype

    def _lies_whole(self) -> torch.Tensor | None:
        """What it is in host memory already, where it is not split."""
        match self.held:
            case Sharded(shards, placement) if not placement:
                whole = shards[0]
            case Unsharded() as held:
                whole = held.whole
            case ViewOf(StateTensor() as base, again) if (inner := base._lies_whole()) is not None:
                whole = again(inner)
                return whole if same_memory(whole, inner) else None
            case _:
                return None
        return whole if whole.device.type == "cpu" else None

    def _written(self) -> torch.Tensor:
        """The memory, with the contents of now."""
        memory = self.memory
        if self._lies_whole() is None:
            memory.copy_(self.gathered("cpu"))
        return memory

    def untyped_storage(self) -> torch.UntypedStorage:
        """One at the address of `memory`, but another object, so that Dynamo takes them for two."""
        memory = self.memory
        if self._storage is None or self._storage.data_ptr() != memory.untyped_storage().data_ptr():
            octets = torch.empty(0, dtype=torch.uint8).set_(memory.untyped_storage())
            self._storage = torch.from_numpy(octets.numpy()).untyped_storage()
        return self._storage

    def data_ptr(self) -> int:
        """The address of `memory`; on CPU devices with the contents of now, elsewhere a name at most."""
        return (self._written() if self.device.type == "cpu" else self.memory).data_ptr()

    def storage(self) -> Any:
        """The same with a dtype, as torch has it."""
        return torch.Tensor.storage(self)  # type: ignore[no-untyped-call]

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["probe", "memory"], super().__tensor_flatten__()[1]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled, it is plain; tied ones share memory, as torch.save of unsharded ones does it."""
        return self._written().detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What is made of state is state, but what an op writes into; what is to be filled is plain."""
        if func is torch.ops.aten.new_empty.default and kwargs and "device" in kwargs:
            return func(args[0].memory, *args[1:], **kwargs)
        given = {id(arg) for arg in (*args, *(kwargs or {}).values())}
        made = super().__torch_dispatch__(func, types, args, kwargs)
        return tree_map_only(ShardedTensor, lambda one: one if id(one) in given else state_of(one), made)


def state_of(tensor: ShardedTensor) -> ShardedTensor:
    """The same tensor as a state dict has it."""
    if isinstance(tensor, StateTensor) or isinstance(tensor.held, Fake):
        return tensor
    strides: Any = {"stride": tensor.stride(), "storage_offset": tensor.storage_offset()}
    state = StateTensor.holding(tensor.kept, tensor.mesh, tensor.probe, tensor.shape, **strides)
    state.qualified_name, state.weight_kind = tensor.qualified_name, tensor.weight_kind
    return state


def give_addresses(module: torch.nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """After `state_dict` of a module: what it says of its own weights has an address, if it is not these."""
    slots = list(places_of(module, recurse=False))
    given = {id(slot.value) for slot in slots}
    keys = [key for table in (module._parameters, module._buffers) for key in table]
    beside = any(slot.beside for slot in slots)  # its module says by which names that is saved
    for name in [name for name in state if name.startswith(prefix)] if beside else map(prefix.__add__, keys):
        value = state.get(name)
        if id(value) not in given and any(isinstance(one, ShardedTensor) for one in leaves_of(value)):
            state[name] = with_inside(value, _state_of_any)


def _state_of_any(tensor: torch.Tensor) -> torch.Tensor:
    return state_of(tensor) if isinstance(tensor, ShardedTensor) else tensor
