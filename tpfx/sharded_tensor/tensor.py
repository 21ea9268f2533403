"""ShardedTensor: one tensor to look at, its parts on the devices of a mesh.

    weight = model.lm_head.weight          # a ShardedTensor
    weight.shards                          # one tensor for each rank that this process owns
    weight.full()                          # the whole, gathered

Parameters, and keys and values in a cache, are ShardedTensors. Any op on one is right: ops that work on
every part by itself do so, anything else gathers and runs whole. Compiled graphs take the shards as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..checkpoint.torch_dcp import box_at, boxes_of, write_items
from ..errors import ShardingError
from ..ir.shards import Shards
from ..kernels.slices import local_shape, take
from ..runtime.mesh import Mesh
from ..torch_internals.dynamo import dynamic_sizes, mark_dynamic_sizes
from ..torch_internals.pytree import tree_map_only
from ..torch_internals.wrapper_subclass import make_wrapper_subclass, set_data, without_torch_function
from .storage import Undivided, Unread, contiguous_strides, probe_of, same_memory, whole_of


class ShardedTensor(torch.Tensor):
    """A tensor whose parts lie on the devices of a mesh.

    It is in one of four states: parts with a placement; whole, while no graph has chosen a placement; a view
    that is made anew of its base whenever it is looked at, and written through; or fake,
    while Dynamo captures.

    Attributes:
        placement: which intervals of which dimensions each rank holds; None while no graph has chosen.
        qualified_name: the name of a parameter or buffer.
    """

    _mesh: Any  # a Mesh; None while Dynamo captures
    _parts: tuple[torch.Tensor, ...] | None
    _cell: Undivided | None
    _behind: tuple[ShardedTensor, Callable[[torch.Tensor], torch.Tensor]] | None
    placement: Shards | None
    qualified_name: str | None
    unread: Unread | None
    probe: torch.Tensor

    __torch_function__ = without_torch_function

    # How an eager op on one is carried out; the module `dispatch` of this room says it.
    carry_out: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

    @staticmethod
    def __new__(  # noqa: D102  (the class says it)
        cls,
        mesh: Mesh | None,
        like: torch.Tensor,
        shape: Sequence[int] | None = None,
        *,
        parts: Sequence[torch.Tensor] | None = None,
        layout: Shards | None = None,
        whole: torch.Tensor | None = None,
        stride: Sequence[int] | None = None,
        storage_offset: int = 0,
        requires_grad: bool = False,
    ) -> ShardedTensor:
        shape = tuple(like.shape if shape is None else shape)
        if stride is None:
            stride = whole.stride() if whole is not None else contiguous_strides(shape)
        device = like.device if mesh is None else mesh.devices[mesh.owned[0]]
        self: ShardedTensor = make_wrapper_subclass(
            cls,
            shape,
            strides=stride,
            storage_offset=storage_offset,
            dtype=like.dtype,
            device=device,
            requires_grad=requires_grad,
        )
        self._mesh = mesh
        self._parts = None if parts is None else tuple(parts)
        self._cell = None if whole is None else Undivided(whole)
        self._behind = None
        self.placement = layout
        self.qualified_name = None
        self.unread = None
        self.probe = like if mesh is None else probe_of(device, like.dtype)
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["probe"], (self.dtype, self.requires_grad)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, torch.Tensor], context: Any, shape: Sequence[int], stride: Sequence[int]
    ) -> ShardedTensor:
        """While a graph is captured: a tensor without parts, whose ops are those of a plain fake tensor."""
        like = inner["probe"]
        return ShardedTensor(None, like, shape, stride=stride, requires_grad=context[1])

    def __coerce_same_metadata_as_tangent__(
        self, expected: Any, expected_type: Any = None
    ) -> torch.Tensor | None:
        """What AOTAutograd asks of a gradient that it expected as a plain tensor."""
        return self.gathered() if expected_type is torch.Tensor else None

    @property
    def mesh(self) -> Mesh:
        """The devices that hold the parts."""
        mesh: Mesh = self._mesh
        return mesh

    @property
    def shards(self) -> tuple[torch.Tensor, ...] | None:
        """The parts of the ranks that this process owns, in order; None where there is no placement yet."""
        return self._parts if self._whole is None else None

    @property
    def resident_bytes(self) -> tuple[int, ...]:
        """Bytes on each rank; what has no placement is where it was, maybe on the first of this process."""
        whole, ranks = self._whole, range(self._mesh.size)
        if self._parts is not None and self.placement is not None:
            shapes = [local_shape(self.shape, self.placement.dims, rank) for rank in ranks]
            return tuple(math.prod(shape) * self.element_size() for shape in shapes)
        size = whole.nbytes if whole is not None and whole.device == self.device else 0
        return tuple(size if rank in self._mesh.firsts else 0 for rank in ranks)

    @property
    def _whole(self) -> torch.Tensor | None:
        """The undivided tensor; None where it has been divided, maybe through an alias."""
        cell = self._cell
        if cell is not None and cell.whole is None:
            self._parts, self.placement, self._cell = cell.parts, cell.placement, None
        return None if cell is None else cell.whole

    def full(self, device: torch.device | str | None = None) -> torch.Tensor:
        """The whole, a plain tensor of its own memory, on the first rank's device or the given one."""
        whole = self.gathered(device)
        shared = self._whole if self._parts is None else self._parts[0]
        return whole.clone() if shared is not None and same_memory(whole, shared) else whole

    def gathered(self, device: torch.device | str | None = None) -> torch.Tensor:
        """The whole tensor as a plain one, which may share memory with this one: not to be written into."""
        if self._mesh is None:  # while a graph is captured
            return self.probe.new_empty_strided(self.shape, self.stride())
        target = self.device if device is None else torch.device(device)
        with torch.no_grad():
            if self._behind is not None:
                base, again = self._behind
                return again(base.gathered(target))
            if self._whole is not None:
                return self._whole.detach().to(target)
            assert self._parts is not None and self.placement is not None
            if self.placement.unfolding:
                raise ShardingError(f"{self!r} belongs to a compiled graph, and cannot be gathered")
            if not self.placement:
                return self._parts[0].to(target)
            parts = self._parts if self._mesh.group else [part.to(target) for part in self._parts]
            return whole_of(parts, self.placement.dims, self.shape, self._mesh).to(target)

    def distribute(self, layout: Shards) -> None:
        """Give a tensor without a placement one: each rank has its part, and the whole is let go."""
        assert self._whole is not None and self._cell is not None, "the tensor has a placement already"
        cell = self._cell
        cell.divide(layout, self._mesh)
        self._parts, self.placement, self._cell = cell.parts, layout, None

    def store(self, whole: torch.Tensor) -> None:
        """Write new contents everywhere that this tensor lies; `whole` may be what `gathered` gave."""
        with torch.no_grad():
            if self._behind is not None:
                base, again = self._behind
                contents = base.gathered()
                again(contents).copy_(whole)
                base.store(contents)
            elif self._whole is not None:
                if not same_memory(whole, self._whole):
                    self._whole.copy_(whole)
            else:
                assert self._parts is not None and self.placement is not None
                for rank, part in zip(self._mesh.owned, self._parts, strict=True):
                    part.copy_(take(whole, self.placement.dims, rank))

    def lying(self, stride: Sequence[int], offset: int) -> ShardedTensor:
        """An alias with other strides and another offset, as they would be if it were not divided."""
        return self._alias(stride, offset)

    def alias(self) -> ShardedTensor:
        """The same tensor, for another holder: what one writes or divides, the other sees."""
        return self._alias(self.stride(), self.storage_offset())

    def _alias(self, stride: Sequence[int], offset: Any) -> ShardedTensor:
        undecided = self._whole
        made = ShardedTensor(
            self._mesh,
            self.probe,
            self.shape,
            parts=self._parts,
            layout=self.placement,
            stride=stride,
            storage_offset=offset,
        )
        made._cell = self._cell if undecided is not None else None
        made._behind, made.qualified_name = self._behind, self.qualified_name
        copy_dynamic(self, made)
        return made

    @property
    def data(self) -> torch.Tensor:
        """An alias without autograd's history. Assigning writes the values, and takes over the dtype."""
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        if value.shape != self.shape:
            raise ShardingError(
                f"cannot put data of shape {list(value.shape)} into {self!r}: its shape is fixed; "
                "change the model before it is compiled"
            )
        with torch.no_grad():
            if value.dtype != self.dtype:
                self._become(self.detach().to(value.dtype))
            self.detach().copy_(value)

    def _become(self, other: torch.Tensor) -> None:
        """Take over another dtype, and the memory that goes with it."""
        if not isinstance(other, ShardedTensor) or other._behind is not None:
            raise ShardingError(
                f"cannot change the dtype of {self!r} to {other.dtype}: change that of its base"
            )
        set_data(self, other)
        self._parts, self._cell, self.placement, self.probe = (
            other._parts,
            other._cell,
            other.placement,
            other.probe,
        )

    def numpy(self, *, force: bool = False) -> Any:
        """The whole tensor as an array, of its own memory."""
        if self.requires_grad and not force:
            raise RuntimeError("a tensor that requires grad has no numpy(); use tensor.detach().numpy()")
        return self.full("cpu" if force else None).numpy(force=force)

    def tolist(self) -> Any:
        """The whole tensor as nested lists."""
        return self.gathered().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> ShardedTensor:
        if id(self) in memo:
            return memo[id(self)]  # type: ignore[no-any-return]
        if not self.is_leaf:
            raise RuntimeError("only leaf tensors can be deep-copied; detach() this one first")
        with torch.no_grad():
            made = self.alias()
            if self._behind is not None:
                made._behind, made._cell, made.placement = None, Undivided(self.full()), None
            elif self._whole is not None:
                made._cell = Undivided(self._whole.detach().clone())
            else:
                assert self._parts is not None
                made._parts = tuple(part.clone() for part in self._parts)
        made.requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made._is_param = True
        memo[id(self)] = made
        made.grad = None if self.grad is None else self.grad.__deepcopy__(memo)
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled, a sharded tensor is the whole as a plain one, in host memory: any program can read it."""
        whole = self.full("cpu")
        if isinstance(self, torch.nn.Parameter):
            whole = torch.nn.Parameter(whole, self.requires_grad)
        return whole.__reduce_ex__(protocol)

    def __create_write_items__(self, name: str, _: Any) -> list[Any]:
        """What torch.distributed.checkpoint writes."""
        return write_items(name, self)

    def __create_chunk_list__(self) -> list[Any]:
        """What torch.distributed.checkpoint reads."""
        return [box.chunk for box in boxes_of(self)]

    def __get_tensor_shard__(self, index: Any) -> torch.Tensor:
        """The memory that torch.distributed.checkpoint reads from or writes to."""
        return box_at(self, index)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        name = "" if self.qualified_name is None else f"{self.qualified_name}, "
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"ShardedTensor({name}{list(self.shape)}, {self.dtype}, {self._held()}{grad})"

    def _held(self) -> str:
        if self._mesh is None:
            return "fake"
        if self._behind is not None:
            return f"a view of {list(self._behind[0].shape)}, {self._behind[0]._held()}"
        if self._whole is not None or self.placement is None:
            return "not divided yet"
        if not self.placement:
            return "replicated"
        sizes = [
            f"dim {dim} as {[sum(stop - start for start, stop in own) for own in owned]}"
            for dim, owned in self.placement.dims
        ]
        return f"split {', '.join(sizes)}"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return cls.carry_out(func, args, kwargs or {})


def copy_dynamic(source: torch.Tensor, made: torch.Tensor) -> None:
    """Sizes that compiled graphs should not be specialised on stay so."""
    marked = dynamic_sizes(source)
    if marked and source.dim() == made.dim():
        mark_dynamic_sizes(made, marked)


def gather_tree(value: Any) -> Any:
    """The same nest of containers with whole tensors in the place of sharded ones.

    Those that gradients may flow back to stay: any op on one is right, and most are never looked at.
    """
    return tree_map_only(ShardedTensor, lambda one: one if one.requires_grad else one.gathered(), value)
