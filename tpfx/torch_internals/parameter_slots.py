"""The places in a model's modules where parameters and buffers are kept, and what a call of one leads to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

# A module's attribute that is called in the place of its hooks and `forward`, where it is not None.
CALLED_INSTEAD = "_compiled_call_impl"

# What is called otherwise.
with_hooks: Any = torch.nn.Module._call_impl


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a module where a parameter or buffer is kept."""

    table: dict[str, Any]
    key: str
    name: str

    @property
    def value(self) -> Any:
        """What is there now."""
        return self.table[self.key]


def slots_of(model: torch.nn.Module, recurse: bool = True) -> Iterator[Slot]:
    """Every place of a parameter or buffer, with its qualified name; tied ones have several.

    Args:
        model: the model.
        recurse: whether to give those of its parts, too.
    """
    for prefix, module in model.named_modules() if recurse else [("", model)]:
        for table in (module._parameters, module._buffers):
            for key, value in table.items():
                if value is not None:
                    yield Slot(table, key, f"{prefix}.{key}" if prefix else key)
