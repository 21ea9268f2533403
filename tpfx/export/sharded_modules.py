"""The modules whose weights a plan splits, and whether the shards are those that other tools cut.

Owners.of(model).way("model.layers.0.mlp.up_proj", 0)     "column": a Linear, split along its first dimension
chunks(64, 3)                                             [(0, 22), (22, 44), (44, 64)]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from ..ir.annotations import dims_of, source_of
from ..ir.axes import Dim, axes
from ..ir.layout import Split
from ..ir.provenance import module_path
from ..ir.resharding import COLLECTIVES, shard, to_partial
from ..ir.shards import concrete

CONVERSIONS = (*COLLECTIVES, shard, to_partial)
# What splitting a weight along a dimension means: the weight's shard, and what goes in and out.
_WAYS: dict[Any, tuple[str, str]] = {
    torch.nn.Linear: ("column", "row"),
    torch.nn.Embedding: ("vocabulary", "width"),
}


@dataclass(frozen=True)
class SplitModule:
    """A module that is split: "column" or "row" (a Linear), "vocabulary" or "width" (an Embedding)."""

    module: str
    way: str


@dataclass
class Owners:
    """The modules of a model, and which of them hold which weights: several where weights are tied."""

    modules: dict[str, torch.nn.Module]
    holders: dict[int, list[tuple[str, str]]]
    weights: dict[str, torch.Tensor]

    @staticmethod
    def of(model: torch.nn.Module) -> Owners:
        """Look through a model."""
        owners = Owners(dict(model.named_modules()), {}, {})
        for path, module in owners.modules.items():
            for name, value in (*module._parameters.items(), *module._buffers.items()):
                if value is not None:
                    owners.holders.setdefault(id(value), []).append((path, name))
                    owners.weights[f"{path}.{name}" if path else name] = value
        return owners

    def holding(self, name: str) -> list[tuple[str, str]]:
        """The modules that hold a weight, and what they call it."""
        return self.holders[id(self.weights[name])]

    def way(self, path: str, dim: int) -> str | None:
        """What splitting a module's weight along a dimension is; None where the module is of another kind."""
        module: Any = self.modules[path]
        kind = next((kind for kind in _WAYS if isinstance(module, kind)), None)
        if kind is None or type(module).forward is not kind.forward or "forward" in vars(module):
            return None
        if kind is torch.nn.Embedding and (module.max_norm is not None or module.scale_grad_by_freq):
            return None
        return _WAYS[kind][dim]

    def shared_with(self, path: str) -> str:
        """Which of a module's weights is also one of a module of another kind; empty where none is."""
        for name, weight in self.modules[path]._parameters.items():
            for other, _ in self.holders[id(weight)] if weight is not None else ():
                if self.way(other, 0) is None:
                    return f"its {name} is also one of {type(self.modules[other]).__name__}"
        return ""

    def kind(self, path: str) -> str:
        """Why a module cannot be a member."""
        name = type(self.modules[path]).__name__
        if isinstance(self.modules[path], tuple(_WAYS)):
            return f"{name} computes something of its own"
        return f"{name} is neither Linear nor Embedding"


def split_modules_of(owners: Owners, weight: Node, split: Split) -> tuple[list[SplitModule], dict[str, str]]:
    """The modules that hold a split weight as members; or, where one cannot be, why none of them is."""
    source = source_of(weight)
    if not source.is_weight:
        return [], {source.name: "what is kept from call to call is no weight"}
    holders = owners.holding(source.name)
    for path, name in holders:
        if reason := _unfit(owners, weight, split, path, name):
            tied = f"tied to {path}: {reason}"
            return [], {holder or own: reason if holder == path else tied for holder, own in holders}
    at = concrete(dims_of(weight), split).dims[0][0]
    ways = {path: owners.way(path, at) for path, name in holders if name == "weight"}
    return [SplitModule(path, way) for path, way in ways.items() if way is not None], {}


def _unfit(owners: Owners, weight: Node, split: Split, path: str, name: str) -> str:
    """Why a module that holds a split weight cannot be a member; empty where it can."""
    (at, held), *more = concrete(dims_of(weight), split).dims
    size = int(weight.meta["val"].shape[at])
    if more or name not in ("weight", "bias") or owners.way(path, at) is None:
        return owners.kind(path)
    if shared := owners.shared_with(path):
        return shared
    if chunks(size, len(held))[-1] == (size, size):
        return f"{size} are too few for {len(held)} devices"
    users = {module_path(user) for user in _users(weight)}
    if not users <= {holder for holder, _ in owners.holding(source_of(weight).name)}:
        return f"its {name} is used outside of it"
    return ""


def _users(value: Node) -> Iterator[Node]:
    """The ops that take a value, also after it has been brought into another layout."""
    for user in value.users:
        if user.target in CONVERSIONS:
            yield from _users(user)
        elif user.op != "output":
            yield user


# How axes are divided.


def chunks(size: int, ranks: int) -> list[tuple[int, int]]:
    """The intervals that `torch.chunk` and DTensor cut a dimension into."""
    step = -(-size // ranks)
    return [(min(size, step * rank), min(size, step * rank + step)) for rank in range(ranks)]


def as_chunks(split: Split, weights: list[Node]) -> Split:
    """The same axes divided such that each rank's shard of every weight is its chunk, where that can be."""
    other = Split(split.axes)
    sizes = [stop - start for start, stop in chunks(split.units, len(split.rank_intervals))]
    if other.fits(sizes):
        other.divide(sizes)
        if all(_is_like_chunks(weight, other) for weight in weights):
            return other
    return split


def _is_like_chunks(weight: Node, split: Split) -> bool:
    extents = weight.meta["val"].shape
    return all(
        list(held)
        == [((start, stop),) if start < stop else () for start, stop in chunks(int(extents[at]), len(held))]
        for at, held in concrete(dims_of(weight), split).dims
    )


def unlike_chunks(weight: Node, split: Split) -> str:
    """Why the shards of a weight are not what `torch.chunk` gives; empty where they are."""
    if _is_like_chunks(weight, split):
        return ""
    name = source_of(weight).name
    at, held = concrete(dims_of(weight), split).dims[0]
    if any(len(pieces) > 1 for pieces in held):
        return f"{name} is packed: each device has {max(map(len, held))} pieces of it"
    lengths = [sum(stop - start for start, stop in pieces) for pieces in held]
    units = f"{name} has {_units(dims_of(weight)[at], split)} units for {len(held)} devices"
    if sum(lengths) > weight.meta["val"].shape[at]:
        return f"{units}: some have the same"
    even = [stop - start for start, stop in chunks(sum(lengths), len(held))]
    return f"{units}: {'+'.join(map(str, lengths))} of its {sum(lengths)}, and not {'+'.join(map(str, even))}"


def _units(dim: Dim, split: Split) -> int:
    """How many units of a split a dimension has."""
    inside = axes(dim)
    return math.prod(int(axis.size) for axis in split.axes if axis in inside)
