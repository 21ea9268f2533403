"""Which modules and optimizers of this process hold a weight.

HOLDERS.places({id(weight)})      # [(module, a slot of its own)]
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Collection, Iterator, Mapping

import torch

from ..torch_internals.parameter_slots import Slot, slots_of

Place = tuple[torch.nn.Module, Slot]


class Holders:
    """The modules and optimizers that a search has found, until they are gone.

    The search looks at every object of the process, so it is made for the first graph of a model alone: only
    where a weight is in none of the modules that are known from the last one.
    """

    def __init__(self) -> None:
        self._modules: list[weakref.ref[torch.nn.Module]] = []
        self._optimizers: list[weakref.ref[torch.optim.Optimizer]] = []
        self.searches = 0

    def places(self, weights: Collection[int]) -> list[Place]:
        """Where modules hold tensors with these ids, as parameters or buffers; a tied one has several."""
        if not weights:
            return []
        found = self._places(weights)
        if {id(slot.value) for _, slot in found} != set(weights):
            self.search()
            found = self._places(weights)
        return found

    def optimizers(self) -> Iterator[torch.optim.Optimizer]:
        """The optimizers that there were at the last search."""
        for known in self._optimizers:
            optimizer = known()
            if optimizer is not None:
                yield optimizer

    def with_all(self, parts: Mapping[str, torch.nn.Module]) -> torch.nn.Module | None:
        """The module, of the last search, that has these parts by these names; None where not one has."""
        known = (module() for module in self._modules)
        found = [
            module
            for module in known
            if module is not None and all(_part(module, name) is part for name, part in parts.items())
        ]
        return found[0] if len(found) == 1 else None

    def _places(self, weights: Collection[int]) -> list[Place]:
        modules = (known() for known in self._modules)
        return [
            (module, slot)
            for module in modules
            if module is not None  # its truth may be its length
            if vars(module).keys() >= {"_parameters", "_buffers"}  # not one in the making
            for slot in slots_of(module, recurse=False)
            if id(slot.value) in weights
        ]

    def search(self) -> None:
        """Look at every object of the process."""
        self.searches += 1
        modules, optimizers = [], []
        for one in gc.get_objects():
            if issubclass(type(one), torch.nn.Module):
                modules.append(weakref.ref(one))
            elif issubclass(type(one), torch.optim.Optimizer):
                optimizers.append(weakref.ref(one))
        self._modules, self._optimizers = modules, optimizers


def _part(module: torch.nn.Module | None, name: str) -> torch.nn.Module | None:
    """A module's part by its qualified name; none of what is being made, or has no such part."""
    for key in filter(None, name.split(".")):
        module = None if module is None else vars(module).get("_modules", {}).get(key)
    return module


HOLDERS = Holders()
