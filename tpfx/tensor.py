"""ShardedTensor: one tensor to look at, its parts on the devices of a mesh.

    weight = model.lm_head.weight          # a ShardedTensor
    weight.shards                          # one tensor for each rank that this process owns
    weight.full()                          # the whole, gathered

Parameters, and keys and values in a cache, are ShardedTensors. Any op on one is right: ops that work on every part by
itself do so, anything else gathers and runs whole. Compiled graphs take the shards as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from .layout import Shards
from .lowering import join, take
from .mesh import Mesh

log = logging.getLogger("tpfx")
aten = torch.ops.aten


class ShardedTensor(torch.Tensor):
    """A tensor whose parts lie on the devices of a mesh.

    Attributes:
        shards: the parts of the ranks that this process owns, in order; None while no graph has chosen a layout.
        placement: which intervals of which dimensions each rank holds.
        qualified_name: the name of a parameter or buffer.
    """

    _mesh: Mesh
    _parts: tuple[torch.Tensor, ...] | None
    _whole: torch.Tensor | None
    placement: Shards | None
    qualified_name: str | None
    probe: torch.Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(
        cls,
        mesh: Mesh | None,
        like: torch.Tensor,
        shape: Sequence[int] | None = None,
        *,
        parts: Sequence[torch.Tensor] | None = None,
        layout: Shards | None = None,
        whole: torch.Tensor | None = None,
        stride: Sequence[int] | None = None,
        requires_grad: bool = False,
    ) -> ShardedTensor:
        shape = tuple(like.shape if shape is None else shape)
        if stride is None:
            stride = whole.stride() if whole is not None else _contiguous(shape)
        self: ShardedTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, shape, strides=stride, dtype=like.dtype, device=_device(mesh, like), requires_grad=requires_grad
        )
        self._mesh = mesh  # type: ignore[assignment]
        self._parts = None if parts is None else tuple(parts)
        self._whole = whole
        self.placement = layout
        self.qualified_name = None
        self.probe = like if mesh is None else _probe(mesh, like)
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

    @property
    def mesh(self) -> Mesh:
        """The devices that hold the parts."""
        return self._mesh

    @property
    def shards(self) -> tuple[torch.Tensor, ...] | None:
        """The parts of the ranks that this process owns; None while no graph has chosen a layout."""
        return self._parts

    @property
    def resident_bytes(self) -> tuple[int, ...]:
        """Bytes on each owned rank; a tensor without a layout lies whole on the first."""
        if self._parts is None:
            size = self._whole.numel() * self._whole.element_size() if self._whole is not None else 0
            return (size, *[0] * (len(self._mesh.owned) - 1))
        return tuple(part.numel() * part.element_size() for part in self._parts)

    def full(self) -> torch.Tensor:
        """The whole tensor, on the device of the first rank, as a plain tensor of its own memory."""
        if self._mesh is None:  # while a graph is captured
            return self.probe.new_empty_strided(self.shape, self.stride())
        if self._whole is not None:
            return self._whole
        assert self._parts is not None and self.placement is not None
        if not self.placement:
            return self._parts[0]
        return join(self._parts, self.placement.dims, self.shape)

    def distribute(self, layout: Shards) -> None:
        """Give a tensor without a layout one: each rank its part, in memory of its own; the whole is let go."""
        assert self._whole is not None, "the tensor has a layout already"
        self._parts = split_among(self._whole, layout, self._mesh)
        self.placement, self._whole = layout, None

    def numpy(self, *, force: bool = False) -> Any:
        """The whole tensor as an array."""
        return self.full().detach().cpu().numpy() if force else self.full().numpy()

    def tolist(self) -> Any:
        """The whole tensor as nested lists."""
        return self.full().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        held = "undecided" if self.placement is None else "replicated" if not self.placement else f"split {self._dims()}"
        return f"ShardedTensor({tuple(self.shape)}, {self.dtype}, {held}, requires_grad={self.requires_grad})"

    def _dims(self) -> str:
        assert self.placement is not None
        return ", ".join(
            f"dim {dim} as {[sum(stop - start for start, stop in own) for own in owned]}" for dim, owned in self.placement.dims
        )

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves, spec = tree_flatten((args, kwargs))
        sharded = [leaf for leaf in leaves if isinstance(leaf, ShardedTensor)]
        if sharded[0]._mesh is not None and (done := _by_shards(func, args, kwargs, leaves, spec, sharded)) is not None:
            return done
        return _whole(func, leaves, spec, sharded)


def _device(mesh: Mesh | None, like: torch.Tensor) -> torch.device:
    return like.device if mesh is None else mesh.devices[mesh.owned[0]]


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides: list[int] = []
    for extent in reversed(shape):
        strides.append(strides[-1] * last if strides else 1)
        last = extent if isinstance(extent, torch.SymInt) else max(extent, 1)
    return tuple(reversed(strides))


_PROBES: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}


def _probe(mesh: Mesh, like: torch.Tensor) -> torch.Tensor:
    """What Dynamo sees inside: a tensor of no elements, shared by all of one kind."""
    key = (_device(mesh, like), like.dtype)
    if key not in _PROBES:
        _PROBES[key] = torch.empty(0, dtype=key[1], device=key[0])
    return _PROBES[key]


def split_among(whole: torch.Tensor, layout: Shards, mesh: Mesh) -> tuple[torch.Tensor, ...]:
    """The part of each owned rank, in memory of its own, on its device."""
    with torch.no_grad():
        return tuple(_own(take(whole, layout.dims, rank), whole, mesh.devices[rank]) for rank in mesh.owned)


def _own(part: torch.Tensor, whole: torch.Tensor, device: torch.device) -> torch.Tensor:
    moved = part.detach().to(device).contiguous()
    shared = moved.numel() and moved.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    return moved.clone() if shared else moved


# Eager ops.

_SHAPE_KEEPING = {
    aten.detach.default,
    aten.clone.default,
    aten.alias.default,
    aten.contiguous.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.empty_like.default,
    aten.full_like.default,
    aten.copy_.default,
    aten.zero_.default,
    aten.fill_.Scalar,
}
# Ops that work along one dimension, by the position of that dimension in their arguments.
_ALONG = {aten.index_select.default: 1, aten.slice.Tensor: 1, aten.repeat_interleave.self_int: 2}


def _by_shards(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Any], spec: Any, sharded: list[ShardedTensor]
) -> Any:
    """The op on every part by itself, where that is the same thing; None where it is not."""
    first = sharded[0]
    if func is aten.detach.default and first._whole is not None:
        return ShardedTensor(first._mesh, first._whole, whole=first._whole)
    if first._parts is None or not _separable(func, args, kwargs, leaves, sharded):
        return None
    ranks = range(len(first._parts))
    results = [func(*a, **k) for a, k in (tree_unflatten(_local(leaves, rank, first), spec) for rank in ranks)]
    if func._schema.is_mutable:
        return first
    shape = list(results[0].shape)
    assert first.placement is not None
    for dim, _ in first.placement.dims:
        shape[dim] = first.shape[dim]
    made = ShardedTensor(first._mesh, results[0], shape, parts=results, layout=first.placement)
    _copy_dynamic(first, made)
    return made


def _copy_dynamic(source: torch.Tensor, made: torch.Tensor) -> None:
    """Sizes that compiled graphs should not be specialised on stay so."""
    marked = getattr(source, "_dynamo_weak_dynamic_indices", None)
    if marked and source.dim() == made.dim():
        made._dynamo_weak_dynamic_indices = marked  # type: ignore[attr-defined]


def _local(leaves: list[Any], rank: int, first: ShardedTensor) -> list[Any]:
    return [leaf._parts[rank] if isinstance(leaf, ShardedTensor) else _moved(leaf, rank, first) for leaf in leaves]  # type: ignore[index]


def _moved(leaf: Any, rank: int, first: ShardedTensor) -> Any:
    if not isinstance(leaf, torch.Tensor) or leaf.dim() == 0 and leaf.device.type == "cpu":
        return leaf
    assert first._parts is not None
    return leaf.to(first._parts[rank].device)


def _separable(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Any], sharded: list[ShardedTensor]
) -> bool:
    first = sharded[0]
    if func in _ALONG:
        return _along_whole_dim(func, args, first) and len(sharded) == 1 and args[0] is first
    if "device" in kwargs or not (func in _SHAPE_KEEPING or torch.Tag.pointwise in func.tags):
        return False
    if not all(leaf.placement == first.placement and leaf.shape == first.shape for leaf in sharded):
        return False
    plain = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, ShardedTensor)]
    mutated_plain = func._schema.is_mutable and not isinstance(args[0], ShardedTensor)
    return all(leaf.numel() == 1 and leaf.dim() <= first.dim() for leaf in plain) and not mutated_plain


def _along_whole_dim(func: Any, args: tuple[Any, ...], first: ShardedTensor) -> bool:
    position = _ALONG[func]
    dim = args[position] if len(args) > position else None
    assert first.placement is not None
    return isinstance(dim, int) and dim % first.dim() not in dict(first.placement.dims)


def _whole(func: Any, leaves: list[Any], spec: Any, sharded: list[ShardedTensor]) -> Any:
    """Gather, run, and write back what the op changed in place."""
    args, kwargs = tree_unflatten([_gathered(leaf) for leaf in leaves], spec)
    result = func(*args, **kwargs)
    if not func._schema.is_mutable:
        return result
    for tensor, whole in _written(func, leaves, spec, args, kwargs):
        if tensor._mesh is not None and tensor._whole is None:
            assert tensor.placement is not None
            tensor._parts = split_among(whole, tensor.placement, tensor._mesh)
    first = leaves[0] if isinstance(leaves[0], ShardedTensor) else None
    return first if first is not None and isinstance(result, torch.Tensor) else result


def _gathered(leaf: Any) -> Any:
    if not isinstance(leaf, ShardedTensor):
        return leaf
    if leaf._mesh is not None and leaf._parts is not None:
        log.debug("gathered a tensor of shape %s for an op outside of the compiled graphs", tuple(leaf.shape))
    return leaf.full()


def _written(
    func: Any, leaves: list[Any], spec: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Iterator[tuple[ShardedTensor, torch.Tensor]]:
    given, named = tree_unflatten(leaves, spec)
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        before = given[position] if position < len(given) else named.get(argument.name)
        after = args[position] if position < len(args) else kwargs.get(argument.name)
        pairs = zip(before, after, strict=True) if isinstance(before, (list, tuple)) else [(before, after)]
        for tensor, whole in pairs:
            if isinstance(tensor, ShardedTensor):
                yield tensor, whole


def gather_tree(value: Any) -> Any:
    """The same nest of containers with whole tensors in the place of sharded ones."""
    gather: Callable[[ShardedTensor], torch.Tensor] = ShardedTensor.full
    return tree_map_only(ShardedTensor, gather, value)
