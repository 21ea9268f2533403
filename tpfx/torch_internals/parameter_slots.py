"""Where a model's modules keep parameters and buffers, and these the tensors that they are made of; and what
a call of a module leads to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass as is_traceable_wrapper_subclass

# A module's attribute that is called in the place of its hooks and `forward`, where it is not None.
CALLED_INSTEAD = "_compiled_call_impl"

# What is called otherwise.
with_hooks: Any = torch.nn.Module._call_impl


Kind = Literal["parameter", "buffer"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Slot:
    """A place where a module keeps a parameter or buffer, where that keeps a tensor it is made of, or where
    what it needs beside it is kept: scales of a packed weight, say."""

    table: dict[str, Any]
    key: str
    name: str
    kind: Kind  # what is kept there, or what that is inside of; of what is beside one, a buffer
    beside: bool = False

    @property
    def value(self) -> Any:
        """What is there now."""
        return self.table[self.key]


def slots_of(model: torch.nn.Module, recurse: bool = True) -> Iterator[Slot]:
    """Every place of a parameter or buffer, with its qualified name; tied ones have several.

    Of one that is made of other tensors, such as a quantized weight, the places of those, once each; and of
    what packed weights need beside them.

    Args:
        model: the model.
        recurse: whether to give those of its parts, too.
    """
    seen: set[int] = set()
    for slot in places_of(model, recurse):
        yield from _inside(slot, seen)


def places_of(model: torch.nn.Module, recurse: bool = True) -> Iterator[Slot]:
    """The same, but also of what is made of other tensors the places in modules."""
    seen: set[int] = set()
    for prefix, module in model.named_modules() if recurse else [("", model)]:
        lead, packed = f"{prefix}." if prefix else "", False
        for kind, table in tables_of(module):
            for key, value in table.items():
                if value is not None:
                    yield Slot(table, key, lead + key, kind)
                    if not value.requires_grad:
                        yield from _beside(_noted(value), f"{lead}{key}.", seen)
                        packed |= kind == "parameter" and not value.dtype.is_floating_point
        if packed:
            yield from _beside(_of_module(module), lead, seen)


def tables_of(module: torch.nn.Module) -> tuple[tuple[Kind, dict[str, Any]], tuple[Kind, dict[str, Any]]]:
    """Where a module itself keeps its parameters, and its buffers."""
    return ("parameter", module._parameters), ("buffer", module._buffers)


def _noted(value: torch.Tensor) -> dict[str, Any]:
    """What others keep in the attributes of a tensor, in containers."""
    own = getattr(value, "own_attributes", ())
    return {key: one for key, one in vars(value).items() if key not in own and _table(one) is not None}


def copy_noted(made: _T, split: Any, memo: dict[int, Any]) -> _T:
    """A tensor, with what others have noted on a split one, if that took the place of a kind of theirs."""
    if getattr(split, "plain_kind", None) is not None:
        if hasattr(made, "plain_kind"):  # it is split too
            vars(made)["plain_kind"] = split.plain_kind
        for name, noted in vars(split).items():
            if name not in split.own_attributes:
                vars(made)[name] = copy.deepcopy(noted, memo)
    return made


def _of_module(module: torch.nn.Module) -> dict[str, Any]:
    """What a module keeps in attributes of its own, in containers."""
    known = vars(_BARE)
    return {key: one for key, one in vars(module).items() if key not in known and _table(one) is not None}


_BARE = torch.nn.Module()


def _beside(held: dict[str, Any], lead: str, seen: set[int]) -> Iterator[Slot]:
    """The places of tensors in containers, and in those that these hold, each container once."""
    for key, value in held.items():
        table = _table(value)
        if isinstance(value, torch.Tensor):
            yield Slot(held, key, lead + key, "buffer", beside=True)
        elif table is not None and id(table) not in seen:
            seen.add(id(table))
            yield from _beside(table, f"{lead}{key}.", seen)


def _table(value: Any) -> dict[str, Any] | None:
    """Where a container keeps what it has: a dict, or the attributes of an object that only keeps things."""
    if type(value) is dict:
        return value if all(type(key) is str for key in value) else None
    if isinstance(value, (torch.Tensor, torch.nn.Module, type)) or callable(value):
        return None
    table = getattr(value, "__dict__", None)
    return table if type(table) is dict else None


def _inside(slot: Slot, seen: set[int]) -> Iterator[Slot]:
    value = slot.value
    names = tensors_inside(value)
    if not names:
        yield slot
    elif id(value) not in seen:
        seen.add(id(value))
        for name in names:
            yield from _inside(Slot(vars(value), name, f"{slot.name}.{name}", slot.kind), seen)


# The classes of tensors that have memory themselves, in most models all.
_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def tensors_inside(value: Any) -> Sequence[str]:
    """The attributes that hold the tensors of which a subclass's tensor is made; none of any other.

    What does not hold them in its `__dict__` (a DTensor), or is one of tpfx's own, counts as one tensor.
    """
    if type(value) in _PLAIN or hasattr(value, "counts_as_one") or not is_traceable_wrapper_subclass(value):
        return ()
    names: Sequence[str] = value.__tensor_flatten__()[0]
    return names if all(name in vars(value) for name in names) else ()


def has_memory(value: Any) -> bool:
    """Whether something is a tensor with memory of its own, of a class of torch's or a plain kind of it."""
    if type(value) in _PLAIN:
        return True
    is_other = hasattr(value, "counts_as_one") or is_traceable_wrapper_subclass(value)
    return isinstance(value, torch.Tensor) and not is_other


def leaves_of(value: Any) -> Iterator[Any]:
    """The tensors of which one is made, itself where it is made of no others."""
    names = tensors_inside(value)
    if not names:
        yield value
    for name in names:
        yield from leaves_of(getattr(value, name))


def with_inside(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A tensor of a subclass like this one, of what `change` makes of each of the tensors inside."""
    names = tensors_inside(value)
    if not names:
        return change(value)
    inner = {name: with_inside(getattr(value, name), change) for name in names}
    made = value.__tensor_unflatten__(inner, value.__tensor_flatten__()[1], value.shape, value.stride())
    return torch.nn.Parameter(made, value.requires_grad) if isinstance(value, torch.nn.Parameter) else made
