"""The places in a model's modules where parameters and buffers are kept, and what a call of one leads to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from .wrapper_subclass import tensors_inside

# A module's attribute that is called in the place of its hooks and `forward`, where it is not None.
CALLED_INSTEAD = "_compiled_call_impl"

# What is called otherwise.
with_hooks: Any = torch.nn.Module._call_impl


Kind = Literal["parameter", "buffer"]


@dataclass(frozen=True, slots=True)
class Slot:
    """A place where a module keeps a parameter or buffer, or where that keeps a tensor it is made of."""

    table: dict[str, Any]
    key: str
    name: str
    kind: Kind  # what is kept there, or what that is inside of

    @property
    def value(self) -> Any:
        """What is there now."""
        return self.table[self.key]


def slots_of(model: torch.nn.Module, recurse: bool = True) -> Iterator[Slot]:
    """Every place of a parameter or buffer, with its qualified name; tied ones have several.

    Of one that is made of other tensors, such as a quantized weight, the places of those, once each.

    Args:
        model: the model.
        recurse: whether to give those of its parts, too.
    """
    seen: set[int] = set()
    for slot in places_of(model, recurse):
        yield from _inside(slot, seen)


def places_of(model: torch.nn.Module, recurse: bool = True) -> Iterator[Slot]:
    """The same, but also of what is made of other tensors the places in modules."""
    for prefix, module in model.named_modules() if recurse else [("", model)]:
        for kind, table in tables_of(module):
            for key, value in table.items():
                if value is not None:
                    yield Slot(table, key, f"{prefix}.{key}" if prefix else key, kind)


def tables_of(module: torch.nn.Module) -> tuple[tuple[Kind, dict[str, Any]], tuple[Kind, dict[str, Any]]]:
    """Where a module itself keeps its parameters, and its buffers."""
    return ("parameter", module._parameters), ("buffer", module._buffers)


def _inside(slot: Slot, seen: set[int]) -> Iterator[Slot]:
    value = slot.value
    names = tensors_inside(value)
    if not names:
        yield slot
    elif id(value) not in seen:
        seen.add(id(value))
        for name in names:
            yield from _inside(Slot(vars(value), name, f"{slot.name}.{name}", slot.kind), seen)
