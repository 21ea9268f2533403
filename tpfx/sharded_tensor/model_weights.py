"""Put sharded tensors in the place of a model's parameters and buffers, and the originals back.

slots = shard_weights(model, mesh)     # nothing is copied: each holds the original until a graph divides it
restore_weights(slots)                 # the model is what it was
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.utils import swap_tensors

from ..checkpoint.safetensors_files import Stored
from ..errors import AlreadyCompiledError, ModelError
from ..runtime.mesh import Mesh
from ..torch_internals.module_changes import CHANGES
from ..torch_internals.parameter_slots import (
    Kind,
    Slot,
    is_traceable_wrapper_subclass,
    leaves_of,
    places_of,
    slots_of,
    tensors_inside,
    with_inside,
)
from ..torch_internals.wrapper_subclass import share_hooks
from .optimizers import forget_successor, succeed
from .storage import Cell, Sharded, Unread, Unsharded
from .tensor import ShardedTensor

log = logging.getLogger("tpfx")

# The classes of weights that are torch's own.
_PLAIN_KINDS = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer, ShardedTensor)


def check_weights(model: torch.nn.Module, stored: Collection[int] = ()) -> None:
    """Refuse what cannot be divided, before anything is changed; `stored` are those that a file has.

    Raises:
        AlreadyCompiledError: a part of the model has been compiled.
        ModelError: there is no parameter, or one has no contents, or is of a kind that cannot be divided.
    """
    if next(model.parameters(), None) is None:
        raise ModelError(f"{type(model).__name__} has no parameters: there is nothing to split")
    for slot in slots_of(model):
        value = slot.value
        if isinstance(value, ShardedTensor):
            devices = [str(device) for device in value.mesh.devices]
            raise AlreadyCompiledError(
                f"{slot.name} is sharded already, over {devices}: a part of this model, or a model that "
                "shares it, is compiled; load it anew to split it otherwise"
            )
        if is_lazy(value):
            raise ModelError(f"{slot.name} has no shape yet; call the model once before it is compiled")
        if value.is_meta and id(value) not in stored:
            raise ModelError(
                f"{slot.name} is on the meta device, without contents; load the weights before compiling, or "
                "let tpfx.load(model, checkpoint) read them"
            )
        if is_traceable_wrapper_subclass(value):
            raise ModelError(
                f"{slot.name} is a {type(value).__name__}, which does not keep the tensors that it is made "
                "of as attributes; tpfx cannot divide it: compile the model before it is wrapped"
            )


def shard_weights(
    model: torch.nn.Module, mesh: Mesh, stored: Mapping[int, Stored] | None = None
) -> list[Slot]:
    """Put a ShardedTensor in the place of every parameter and buffer; tied ones stay tied.

    `stored` says, by identity, which have no contents and where those are.
    """
    made: dict[int, ShardedTensor] = {}
    slots = list(slots_of(model))
    own = _of_modules(slots)
    for slot in slots:
        value = slot.value
        if id(value) not in made:
            sharded = sharded_weight(value, slot.name, mesh, slot.kind, (stored or {}).get(id(value)))
            made[id(value)] = _take_place(value, sharded) if id(value) in own else sharded
        slot.table[slot.key] = made[id(value)]
    return slots


def _of_modules(slots: Iterable[Slot]) -> set[int]:
    """What modules keep themselves. What is beside a weight may be shared with others: it stays as it is."""
    return {id(slot.value) for slot in slots if not slot.beside}


def adopt_weights(model: torch.nn.Module, mesh: Mesh) -> None:
    """Split those too that a compiled model was given later; what cannot be divided stays as it is."""
    made: dict[int, torch.Tensor] = {}
    for slot in slots_of(model):
        value = slot.value
        if isinstance(value, ShardedTensor):
            if value.qualified_name is None:
                value.qualified_name, value.weight_kind = slot.name, slot.kind
        elif id(value) in made or _divisible(value):
            if id(value) not in made:
                sharded = sharded_weight(value, slot.name, mesh, slot.kind)
                made[id(value)] = sharded if slot.beside else _take_place(value, sharded)
            slot.table[slot.key] = made[id(value)]


def _divisible(value: torch.Tensor) -> bool:
    return not (is_lazy(value) or value.is_meta or is_traceable_wrapper_subclass(value))


def _take_place(value: torch.Tensor, sharded: ShardedTensor) -> ShardedTensor:
    """Make the very object that a weight is the sharded one, so that whoever has it, has the sharded one: an
    optimizer, a list of parameters. Where something refers to it weakly that cannot be."""
    try:
        swap_tensors(value, sharded)
    except RuntimeError as problem:
        log.debug("%s is replaced: %s", sharded.qualified_name, problem)
        succeed(value, sharded)
        return sharded
    assert isinstance(value, ShardedTensor) and isinstance(value.held, Unsharded)
    value.held.cell.contents = sharded  # which is the plain one now
    return value


def sharded_weight(
    value: torch.Tensor, name: str, mesh: Mesh, kind: Kind, stored: Stored | None = None
) -> ShardedTensor:
    """What takes the place of a parameter or buffer, or inside of one; undivided until a graph decides."""
    sharded = ShardedTensor.unsharded(mesh, value, stored=stored, requires_grad=value.requires_grad)
    sharded.qualified_name, sharded.weight_kind = name, kind
    if type(value) not in _PLAIN_KINDS:
        sharded.plain_kind = type(value)
    _mark_like(sharded, value)
    return sharded


def _mark_like(tensor: torch.Tensor, original: torch.Tensor) -> None:
    """What others have noted on a parameter, its hooks, and that it is one."""
    share_hooks(tensor, original)
    for attribute, noted in vars(original).items():
        if attribute not in vars(tensor) and attribute not in ShardedTensor.own_attributes:
            setattr(tensor, attribute, noted)
    if isinstance(original, torch.nn.Parameter) and not isinstance(tensor, torch.nn.Parameter):
        tensor._is_param = True


def restore_weights(slots: list[Slot]) -> None:
    """Put the originals back; one that has been divided is gathered, and otherwise as it was."""
    originals: dict[int, torch.Tensor] = {}
    own = _of_modules(slots)
    for slot in slots:
        sharded = slot.value
        if id(sharded) not in originals:
            original = _original(sharded)
            originals[id(sharded)] = _put_back(sharded, original) if id(sharded) in own else original
        slot.table[slot.key] = originals[id(sharded)]


def unshard_weights(slots: list[Slot], device: torch.device | str | None) -> None:
    """Put whole, plain tensors in the place of sharded ones, with their gradients; first all are gathered."""
    distinct = {id(slot.value): slot.value for slot in slots if isinstance(slot.value, ShardedTensor)}
    own = _of_modules(slots)
    whole = {key: plain_weight(sharded, device) for key, sharded in distinct.items()}
    made: dict[int, torch.Tensor] = {}
    for key, sharded in distinct.items():
        _mark_like(whole[key], sharded)
        whole[key].grad = None if sharded.grad is None else _plain(sharded.grad, whole[key].device)
        made[key] = _put_back(sharded, whole[key]) if key in own else whole[key]
    for slot in slots:
        slot.table[slot.key] = made.get(id(slot.value), slot.value)


def plain_weight(
    sharded: ShardedTensor, device: torch.device | str | None, copy: bool = False
) -> torch.Tensor:
    """What a split weight is whole, a parameter where it is one; the original, if it is not split yet."""
    held = sharded.held
    target = sharded.device if device is None else torch.device(device)
    if isinstance(held, Unsharded) and held.whole.device == target and not copy:
        held.whole.requires_grad_(sharded.requires_grad)
        return held.whole
    whole = sharded.full(target)
    if sharded.plain_kind is not None:
        return whole.as_subclass(sharded.plain_kind).requires_grad_(sharded.requires_grad)
    is_parameter = isinstance(sharded, torch.nn.Parameter)
    return torch.nn.Parameter(whole, sharded.requires_grad) if is_parameter else whole


def read_weights(slots: list[Slot], mesh: Mesh, expect: Callable[[int], None]) -> None:
    """Read what files have: each shard, and whole what no graph has sharded; first say how many bytes.

    Until all is read, everything counts as unread: if a file cannot be read, the originals can be put back.
    """
    distinct: dict[int, ShardedTensor] = {id(slot.value): slot.value for slot in slots}
    expect(sum(_unread_bytes(sharded) for sharded in distinct.values()))
    finish = [_read(sharded, mesh) for sharded in distinct.values()]
    for each in finish:
        each()


def _unread_bytes(sharded: ShardedTensor) -> int:
    match sharded.held:
        case Unsharded(Cell(stored=Stored())) as held:
            return held.whole.nbytes
        case Sharded(shards, _, Unread()):
            return sum(shard.nbytes for shard in shards)
        case _:
            return 0


def _read(sharded: ShardedTensor, mesh: Mesh) -> Callable[[], None]:
    """Read a weight's contents, if they are unread; what is returned makes them count."""
    match sharded.held:
        case Unsharded(Cell(stored=Stored() as stored) as cell) as held:
            whole = torch.empty(held.whole.shape, dtype=held.whole.dtype, device="cpu")
            stored.read(whole, (), 0)
            return partial(cell.fill, whole)
        case Sharded(shards, placement, Unread(_, stored)):
            for rank, shard in zip(mesh.owned, shards, strict=True):
                stored.read(shard, placement.dims, rank)
            return sharded.is_read
        case _:
            return _nothing


def _nothing() -> None:
    """A weight had its contents already."""


def _put_back(sharded: ShardedTensor, original: torch.Tensor) -> torch.Tensor:
    """Make the object that took a weight's place the weight again; the original where they are two."""
    if forget_successor(original):
        return original
    try:
        swap_tensors(sharded, original)
    except RuntimeError as problem:
        log.debug("%s is put back as another object: %s", sharded.qualified_name, problem)
        succeed(sharded, original)
        return original
    return sharded


def _original(sharded: ShardedTensor) -> torch.Tensor:
    match sharded.held:
        case Unsharded() as held:
            return held.whole
        case Sharded(unread=Unread(original)):
            return original
    return plain_weight(sharded, None)


def convert_weight(model: torch.nn.Module, value: torch.Tensor, after: torch.Tensor) -> None:
    """Give a weight of a model another dtype, in place; `after` is what a sample of it became.

    Of one that is made of others, `after` is all of it; the object stays where nothing refers to it weakly.
    """
    if not tensors_inside(value):
        value.data = value.detach().to(after.dtype)
        return
    made = torch.nn.Parameter(after, value.requires_grad)
    try:
        swap_tensors(value, made)
    except RuntimeError as problem:
        log.debug("a weight is replaced: %s", problem)
        for slot in [slot for slot in places_of(model) if slot.value is value]:
            slot.table[slot.key] = made
    CHANGES.note()


def full_state_dict(
    model: torch.nn.Module, device: torch.device | str | None = None
) -> dict[str, torch.Tensor]:
    """The unsharded state dict, with the original names: plain tensors, gathered one by one; ties are kept.

    Args:
        model: a compiled model.
        device: where the tensors shall be, "cpu" for a model larger than a device; None for the first one.

    >>> torch.save(tpfx.full_state_dict(model, "cpu"), "model.pt")
    """
    return _plain_state(model.state_dict(), device)


def _plain_state(state: Mapping[str, Any], device: torch.device | str | None) -> dict[str, Any]:
    """The same with whole, plain tensors; what shared memory shares it again."""
    made: dict[Hashable, Any] = {}
    plain = {}
    for name, value in state.items():
        key = _memory_of(value)
        if key not in made:
            made[key] = _plain(value, device)
        plain[name] = made[key]
    return plain


def _memory_of(value: Any) -> Hashable:
    """What tells tied weights from others: every alias of a sharded tensor has the same shards."""
    if tensors_inside(value):
        return tuple(map(_memory_of, leaves_of(value)))
    match value.held if isinstance(value, ShardedTensor) else None:
        case Sharded(shards):
            return id(shards)
        case Unsharded(cell):
            return id(cell)
        case _:
            return id(value)


def _plain(value: Any, device: torch.device | str | None) -> Any:
    if isinstance(value, ShardedTensor):
        return value.full(device)
    if tensors_inside(value):
        return with_inside(value, partial(_plain, device=device))
    return value.detach().to(device) if isinstance(value, torch.Tensor) else value


def load_into_place(
    module: torch.nn.Module, state: Mapping[str, Any], prefix: str, metadata: dict[str, Any], *_: Any
) -> None:
    """Before `load_state_dict` of a part of a model: its values go where the weights lie, even where the
    caller would have the tensors themselves put in their place (`assign=True`): then with their dtype."""
    if metadata.get("assign_to_params_buffers"):
        for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            given = state.get(prefix + name)
            if isinstance(given, torch.Tensor) and given.dtype != value.dtype:
                value.data = value.detach().to(given.dtype)
    metadata["assign_to_params_buffers"] = False
