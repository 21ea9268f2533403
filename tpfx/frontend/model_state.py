"""What a model's graphs rely on that Dynamo does not guard: which hooks there are, and how its weights are.

state = ModelState.of(model)        # looks at each module: 0.2 ms for a Llama of 12 layers
state.holds()                       # nothing was registered anywhere since, no hook was taken out: 0.3 µs
state.key == ModelState.of(model).key
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..torch_internals.module_changes import CHANGES, hook_tables
from ..torch_internals.parameter_slots import slots_of


@dataclass(frozen=True)
class ModelState:
    """How a model was when it was last looked at.

    Attributes:
        key: equal where graphs that were captured then do now.
        hooks: the tables of hooks that were not empty, with the ids in them.
        seen: the number of changes in this process.
    """

    key: Hashable
    hooks: tuple[tuple[dict[int, Any], tuple[int, ...]], ...]
    seen: int

    @staticmethod
    def of(model: torch.nn.Module) -> ModelState:
        """Look at a model."""
        seen = CHANGES.number()
        tables = list(hook_tables(model))
        places = tuple((place, tuple(table)) for place, table in tables)
        hooks = tuple((table, tuple(table)) for _, table in tables)
        return ModelState((places, tuple(_weights(model))), hooks, seen)

    def holds(self) -> bool:
        """Whether nothing can have changed since; if not, look again."""
        if CHANGES.number() != self.seen:
            return False
        return not self.hooks or all(tuple(table) == ids for table, ids in self.hooks)


def _weights(model: torch.nn.Module) -> Iterator[Hashable]:
    """Of each weight: which it is, where tied, its shape and dtype, and whether a gradient is wanted."""
    order: dict[int, int] = {}
    for slot in slots_of(model):
        value = slot.value
        which = order.setdefault(id(value), len(order))
        yield which, type(value), value.shape, value.dtype, value.requires_grad


UNSEEN = ModelState(None, (), -1)  # of a model that has not been looked at
