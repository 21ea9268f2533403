"""ShardedTensor: one tensor to look at, its shards on the devices of a mesh.

    weight = model.lm_head.weight          # a ShardedTensor
    weight.shards                          # one tensor for each rank that this process owns
    weight.full()                          # the whole, gathered

Parameters, and keys and values in a cache, are ShardedTensors. Any op on one is right: ops that work on every
shard by itself do so, anything else gathers and runs whole. Compiled graphs take the shards as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import torch

from ..checkpoint.safetensors_files import Stored
from ..errors import ShardingError
from ..ir.shards import Shards
from ..kernels.slices import local_shape, take
from ..runtime.mesh import Mesh
from ..torch_internals.dynamo import dynamic_sizes, mark_dynamic_sizes
from ..torch_internals.module_changes import CHANGES
from ..torch_internals.parameter_slots import Kind, copy_noted
from ..torch_internals.wrapper_subclass import (
    OfItsOwn,
    Watched,
    is_functional,
    make_wrapper_subclass,
    set_data,
    unreadable,
    without_torch_function,
)
from .outside import Outside, parameter_of
from .storage import (
    Cell,
    Fake,
    Sharded,
    Storage,
    Unsharded,
    ViewOf,
    contiguous_strides,
    copied,
    probe_of,
    refuse_distributed,
    same_memory,
    whole_of,
)


class ShardedTensor(Outside, Watched, OfItsOwn):
    """A tensor whose shards lie on the devices of a mesh.

    Attributes:
        mesh: the devices that hold the shards; a fake tensor has none.
        qualified_name: the name of a parameter or buffer.
        weight_kind: what a named one is kept as by a module, or is inside of.
        whole_because: why a graph has left a parameter or buffer whole; None where none has.
        last_held: `held` as it was last looked at, for the hot path; an alias may have sharded it since.
    """

    mesh: Mesh
    qualified_name: str | None = None
    weight_kind: Kind = "buffer"
    whole_because: Any = None
    probe: torch.Tensor
    last_held: Storage

    __torch_function__ = without_torch_function

    # How an eager op on one is carried out; the module `dispatch` of this room says it.
    carry_out: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

    @staticmethod
    def __new__(cls, data: Any, requires_grad: bool = True) -> Any:  # noqa: D102
        return parameter_of(data, requires_grad)  # for programs that make one of the class of a weight

    @classmethod
    def holding(
        cls,
        held: Storage,
        mesh: Mesh | None,
        like: torch.Tensor,
        shape: Sequence[int] | None = None,
        *,
        stride: Sequence[int] | None = None,
        storage_offset: int = 0,
        requires_grad: bool = False,
    ) -> Self:
        """One that is held in some way, of the dtype of `like`, and of its shape if no other is given."""
        shape = tuple(like.shape if shape is None else shape)
        device = like.device if mesh is None else mesh.devices[mesh.owned[0]]
        self: Self = make_wrapper_subclass(
            cls,
            shape,
            strides=contiguous_strides(shape) if stride is None else stride,
            storage_offset=storage_offset,
            dtype=like.dtype,
            device=device,
            requires_grad=requires_grad,
        )
        unreadable(self)
        if mesh is not None:
            self.mesh = mesh
        self.last_held, self.qualified_name = held, None
        self.probe = like if mesh is None else probe_of(device, like.dtype)
        return self

    @classmethod
    def unsharded(
        cls, mesh: Mesh, whole: torch.Tensor, *, stored: Stored | None = None, requires_grad: bool = False
    ) -> ShardedTensor:
        """One that no graph has sharded yet: it holds `whole` itself, whose contents may be `stored`."""
        held = Unsharded(Cell(whole, stored))
        return cls.holding(held, mesh, whole, stride=whole.stride(), requires_grad=requires_grad)

    @staticmethod
    def of_shards(
        mesh: Mesh, shards: tuple[torch.Tensor, ...], placement: Shards, shape: Sequence[int]
    ) -> ShardedTensor:
        """A dense one of this shape, of shards that lie as a graph has chosen; for the hot path."""
        dtype, device = shards[0].dtype, mesh.devices[mesh.owned[0]]
        self: ShardedTensor = make_wrapper_subclass(ShardedTensor, shape, dtype=dtype, device=device)
        self.mesh, self.last_held = mesh, Sharded(shards, placement)
        self.probe = probe_of(device, dtype)
        return self

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["probe"], (self.dtype, self.requires_grad)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, torch.Tensor], context: Any, shape: Sequence[int], stride: Sequence[int]
    ) -> ShardedTensor:
        """While a graph is captured: a tensor without shards, whose ops are those of a plain fake tensor.

        It has a probe of its own: tensors that share memory may not go into a branch or a loop.
        """
        like = inner["probe"].new_empty(0)
        return ShardedTensor.holding(Fake(), None, like, shape, stride=stride, requires_grad=context[1])

    def __coerce_same_metadata_as_tangent__(
        self, expected: Any, expected_type: Any = None
    ) -> torch.Tensor | None:
        """What AOTAutograd asks of a gradient that it expected as a plain tensor."""
        return self.gathered() if expected_type is torch.Tensor else None

    @property
    def held(self) -> Storage:
        """How the tensor is held."""
        held = self.last_held
        if held.__class__ is Unsharded and isinstance(became := held.cell.contents, Sharded):  # by an alias
            if became.chosen:
                self.last_held = became
            return became
        return held

    @property
    def kept(self) -> Storage:
        """How an alias is to be held, so that it finds out what this tensor becomes."""
        return self.held if self.pinned is not None else self.last_held

    @property
    def shards(self) -> tuple[torch.Tensor, ...] | None:
        """The shards of the ranks that this process owns, in order; None where there is no placement yet."""
        held = self.held
        return held.shards if isinstance(held, Sharded) else None

    @property
    def placement(self) -> Shards | None:
        """Which intervals of which dimensions each rank has; None while no graph has chosen."""
        held = self.held
        if held.__class__ is Sharded:  # looked at several times for each eager op
            return held.placement
        match held:
            case Sharded(_, placement):
                return placement
            case ViewOf():
                return Shards()
            case Unsharded() | Fake():
                return None

    @property
    def pinned(self) -> Shards | None:
        """The placement, where it is to stay; None where a graph may choose one."""
        held = self.held
        return None if isinstance(held, Sharded) and not held.chosen else self.placement

    @property
    def open_cell(self) -> Cell | None:
        """What is shared with aliases while a graph may choose a placement; None once one has."""
        return self.last_held.cell if self.pinned is None and isinstance(self.last_held, Unsharded) else None

    @property
    def resident_bytes(self) -> tuple[int, ...]:
        """Bytes on each rank; what has no placement is where it was, maybe on the first of this process."""
        ranks = range(self.mesh.size)
        match self.held:
            case Sharded(_, placement):
                shapes = [local_shape(self.shape, placement.dims, rank) for rank in ranks]
                return tuple(math.prod(shape) * self.element_size() for shape in shapes)
            case Unsharded(cell=Cell(contents=torch.Tensor() as whole)) if whole.device == self.device:
                return tuple(whole.nbytes if rank in self.mesh.firsts else 0 for rank in ranks)
            case Unsharded() | ViewOf() | Fake():
                return (0,) * len(ranks)

    def full(self, device: torch.device | str | None = None) -> torch.Tensor:
        """The whole, a plain tensor of its own memory, on the first rank's device or the given one."""
        whole, own = self.gathered(device), self._memory()
        return whole.clone() if own is not None and same_memory(whole, own) else whole

    def _memory(self) -> torch.Tensor | None:
        """A tensor in whose memory the result of `gathered` may lie."""
        match self.held:
            case Sharded(shards):
                return shards[0]
            case Unsharded() as held:
                return held.whole
            case ViewOf(base):
                return base._memory()
            case Fake():
                return None

    def gathered(self, device: torch.device | str | None = None) -> torch.Tensor:
        """The whole tensor as a plain one, which may share memory with this one: not to be written into."""
        target = self.device if device is None else torch.device(device)
        with torch.no_grad():
            match self.held:
                case Sharded() as held:
                    return self._joined(held, target)
                case Unsharded() as held:
                    return held.whole.detach().to(target)
                case ViewOf(base, again):
                    return again(base.gathered(target))
                case Fake():
                    return self._faked()

    def _faked(self) -> torch.Tensor:
        if is_functional(self.probe):
            raise ShardingError(
                f"a split tensor of {list(self.shape)} cannot go into a graph that another compiler makes: "
                "pass tensor.full()"
            )
        return self.probe.new_empty_strided(self.shape, self.stride())

    def _joined(self, held: Sharded, target: torch.device) -> torch.Tensor:
        if held.placement.unfolding:
            raise ShardingError(
                f"{self!r} belongs to a compiled graph, and cannot be gathered: use what the model returns"
            )
        if not held.placement:
            return held.shards[0].to(target)
        shards = held.shards if self.mesh.group else [shard.to(target) for shard in held.shards]
        return whole_of(shards, held.placement.dims, self.shape, self.mesh).to(target)

    def distribute(self, layout: Shards, *, chosen: bool = True) -> None:
        """Give each rank its shard, where no placement has been chosen; not `chosen`: this is for now."""
        cell = self.open_cell
        assert cell is not None, "the tensor has a placement already"
        match cell.contents:
            case Sharded(placement=placement) as held if placement == layout:
                cell.contents = replace(held, chosen=chosen)
            case Sharded():
                cell.lay_out(self.gathered(), layout, self.mesh, chosen)
            case whole:
                cell.lay_out(whole, layout, self.mesh, chosen)

    def is_read(self) -> None:
        """The contents of all shards have been read."""
        held = self.held
        assert isinstance(held, Sharded), "what has been read is a shard for each rank"
        cell = self.open_cell
        if cell is None:
            self.last_held = replace(held, unread=None)
        else:
            cell.contents, cell.stored = replace(held, unread=None), None

    def hold(self, shards: Sequence[torch.Tensor], layout: Shards) -> None:
        """Lie otherwise from now on, in shards with the same contents. Aliases stay as they are."""
        self.last_held = Sharded(tuple(shards), layout)

    def store(self, whole: torch.Tensor) -> None:
        """Write new contents everywhere that this tensor lies; `whole` may be what `gathered` gave."""
        with torch.no_grad():
            match self.held:
                case Sharded(shards, placement):
                    for rank, shard in zip(self.mesh.owned, shards, strict=True):
                        shard.copy_(take(whole, placement.dims, rank))
                case Unsharded() as held:
                    if not same_memory(whole, held.whole):
                        held.whole.copy_(whole)
                case ViewOf(base, again):
                    contents = base.gathered()
                    again(contents).copy_(whole)
                    base.store(contents)
                case Fake():
                    pass  # the captured graph has the op that writes

    def restrided(self, stride: Sequence[int], offset: int) -> ShardedTensor:
        """An alias with other strides and another offset, as they would be if it were not divided."""
        return self._alias(stride, offset)

    def alias(self) -> ShardedTensor:
        """The same tensor, for another holder: what one writes or divides, the other sees."""
        return self._alias(self.stride(), self.storage_offset())

    def _alias(self, stride: Sequence[int], offset: Any) -> ShardedTensor:
        mesh = None if isinstance(self.last_held, Fake) else self.mesh
        like = self.probe
        made = self.holding(self.kept, mesh, like, self.shape, stride=stride, storage_offset=offset)
        made.qualified_name, made.weight_kind = self.qualified_name, self.weight_kind
        copy_dynamic(self, made)
        return made

    @property
    def data(self) -> torch.Tensor:
        """An alias without autograd's history. Assigning writes the values, and takes over the dtype."""
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        with torch.no_grad():
            if value.shape != self.shape:
                whole = value.full() if isinstance(value, ShardedTensor) else value.detach().clone()
                self._become(ShardedTensor.unsharded(self.mesh, whole))
                return
            if value.dtype != self.dtype:
                self._become(self.detach().to(value.dtype))
            self.detach().copy_(value)

    def _become(self, other: torch.Tensor) -> None:
        """Take over another shape or dtype, and the memory that goes with it."""
        if not isinstance(other, ShardedTensor) or ViewOf in (type(self.held), type(other.held)):
            raise ShardingError(
                f"cannot make {self!r} one of {list(other.shape)}, {other.dtype}: change its base"
            )
        set_data(self, other)
        self.last_held, self.probe = other.kept, other.probe
        CHANGES.note()

    def __deepcopy__(self, memo: dict[int, Any]) -> ShardedTensor:
        if id(self) in memo:
            return memo[id(self)]  # type: ignore[no-any-return]
        if not self.is_leaf:
            raise RuntimeError("only leaf tensors can be deep-copied; detach() this one first")
        with torch.no_grad():
            made = self.alias()
            made.last_held, made.whole_because = copied(self.held, self.full), self.whole_because
        made.requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made._is_param = True
        memo[id(self)] = made
        made.grad = None if self.grad is None else self.grad.__deepcopy__(memo)
        return copy_noted(made, self, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled, a sharded tensor is the whole as a plain one, in host memory: any program can read it."""
        whole = self.full("cpu")
        if isinstance(self, torch.nn.Parameter):
            whole = torch.nn.Parameter(whole, self.requires_grad)
        return whole.__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        name = "" if self.qualified_name is None else f"{self.qualified_name}, "
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"ShardedTensor({name}{list(self.shape)}, {self.dtype}, {self._described()}{grad})"

    def _described(self) -> str:
        match self.held:
            case Sharded(_, placement):
                sizes = [
                    f"dim {dim} as {[sum(stop - start for start, stop in own) for own in owned]}"
                    for dim, owned in placement.dims
                ]
                return f"split {', '.join(sizes)}" if sizes else "replicated"
            case Unsharded():
                return "not divided yet"
            case ViewOf(base):
                return f"a view of {list(base.shape)}, {base._described()}"
            case Fake():
                return "fake"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if len(types) > 1:
            refuse_distributed(func, types)
        return cls.carry_out(func, args, kwargs or {})


def copy_dynamic(source: torch.Tensor, made: torch.Tensor) -> None:
    """Sizes that compiled graphs should not be specialised on stay so."""
    marked = dynamic_sizes(source)
    if marked and source.dim() == made.dim():
        mark_dynamic_sizes(made, marked)
