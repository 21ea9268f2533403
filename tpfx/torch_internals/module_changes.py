"""Whether modules of this process may have other hooks than before, or weights been changed in place.

seen = CHANGES.number()                          # it only grows; 0.2 µs
if CHANGES.number() != seen: ...                 # a hook was registered since, of some module or tensor
tables = list(hook_tables(model))                # [(place, the table of hooks)]: those that are not empty
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch.nn.modules import module as _module
from torch.utils.hooks import RemovableHandle

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)


class Changes:
    """How often something was changed that compiled graphs rely on and do not ask about at each call."""

    def __init__(self) -> None:
        self.noted = 0
        self._own = 0  # hooks that no graph relies on
        self._lock = threading.Lock()

    def note(self) -> None:
        """Something has changed: a weight's shape or dtype, or whether a gradient is wanted of it."""
        self.noted += 1

    def number(self) -> int:
        """Another number than before, if something has been noted or any hook registered since."""
        return self.noted + RemovableHandle.next_id - self._own

    def number_to_keep(self) -> int:
        """The same, while no thread is about to register a hook that does not count."""
        with self._lock:
            return self.number()

    def without_counting(self, register: Callable[[], object]) -> None:
        """Register one hook that no graph relies on: that of a call, on autograd's node."""
        with self._lock:
            register()
            self._own += 1


CHANGES = Changes()


def hook_tables(model: torch.nn.Module, own: bool = False) -> Iterator[tuple[object, dict[int, Any]]]:
    """The hooks that run inside of a model's `forward`, those of all modules too; its own run around it.

    Args:
        model: the model.
        own: whether to give its own too.

    Yields:
        The position of a module and the name of its table, and that: hooks by their ids, one at least.
    """
    for name in _GLOBAL_HOOKS:
        table = vars(_module)[name]
        if table:
            yield name, table
    for at, module in enumerate(model.modules()):
        attributes = vars(module) if at or own else {}
        for name in _HOOKS:
            table = attributes.get(name)
            if table:
                yield (at, name), table


def remove_state_hooks(module: torch.nn.Module, hooks: Collection[Any]) -> None:
    """Take such hooks out of those that a module has for loading, and for making, state dicts."""
    for table in (module._load_state_dict_pre_hooks, module._state_dict_hooks):
        for key, known in list(table.items()):
            if getattr(known, "hook", known) in hooks:
                del table[key]
