"""What of a model's weights is not divided among the devices, why, and what can be done about it.

for one in undivided_in(model): print(one.names, one.bytes, one.reason, one.remedy)
warn_of(model, session)       # once for each reason that concerns more than 1% of the bytes
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from ..formatting import bytes_text
from ..planning.whole_weights import Reason
from ..sharded_tensor import ShardedTensor
from ..sharded_tensor.storage import Cell
from ..torch_internals.parameter_slots import slots_of
from .session import Session

WORTH_A_WARNING = 0.01  # of the bytes of a model
MATTERS = 1 << 20  # bytes: what was found to be best undivided, and is less, is nothing to a device

_NO_GRAPH = Reason("no call has been captured yet", "the first call divides it")
_UNREACHED = Reason("no call has used it yet, so it is stored evenly", "the first call that does lays it out")
_LEFT = Reason("it has been laid out so by hand, by another model, or as a like layer's", "none is needed")


@dataclass(frozen=True)
class Undivided:
    """Weights that are not divided for one reason.

    Attributes:
        names: their names.
        bytes: what they have together.
        reason: why they are not divided.
        remedy: what can be done about it.
        stored_evenly: whether every device has its share all the same, gathered when eager code looks.
        warns: whether a call is slower, or a device fuller by what matters, than it need be.
    """

    names: tuple[str, ...]
    bytes: int
    reason: str
    remedy: str
    stored_evenly: bool = False
    warns: bool = True

    @property
    def named(self) -> str:
        """The first of the names, and how many more there are."""
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} and {len(self.names) - 1} more"


def undivided_in(model: torch.nn.Module) -> list[Undivided]:
    """The weights of a compiled model that no graph has divided, by reason, the most bytes first."""
    groups: dict[tuple[Reason, bool], dict[int, tuple[str, int]]] = {}
    for slot in slots_of(model):
        weight = slot.value
        reason = _why(weight) if weight.numel() > 1 else None
        if reason is not None:
            stored = isinstance(weight, ShardedTensor) and bool(weight.placement)
            groups.setdefault((reason, stored), {}).setdefault(
                id(weight), (slot.name, weight.numel() * weight.element_size())
            )
    found = [_group(reason, stored, weights.values()) for (reason, stored), weights in groups.items()]
    return sorted(found, key=lambda one: -one.bytes)


def _group(reason: Reason, stored: bool, weights: Iterable[tuple[str, int]]) -> Undivided:
    named = list(weights)
    names, size = tuple(name for name, _ in named), sum(size for _, size in named)
    warns = reason not in (_NO_GRAPH, _UNREACHED, _LEFT) and (size >= MATTERS or not reason.best)
    return Undivided(names, size, reason.text, reason.remedy, stored, warns)


def _why(weight: torch.Tensor) -> Reason | None:
    """Why a weight is not divided; None where it is."""
    if not isinstance(weight, ShardedTensor):
        return Reason(
            f"no graph has it: it is a {type(weight).__name__} that was put in place since, or is used by "
            "code that Dynamo leaves out of every graph",
            "call the model once; TORCH_LOGS=graph_breaks names such code",
        )
    cell = weight.open_cell
    if cell is not None and weight.whole_because is None:
        return _why_open(weight, cell)
    return None if weight.placement else weight.whole_because or _LEFT


def _why_open(weight: ShardedTensor, cell: Cell) -> Reason:
    if cell.used_eagerly:
        return Reason(
            "code that Dynamo leaves out of every graph uses it, and gathers it each time",
            "TORCH_LOGS=graph_breaks names that code",
        )
    return _NO_GRAPH if weight.placement is None else _UNREACHED


def warn_of(model: torch.nn.Module, session: Session) -> None:
    """Warn of weights that are not divided: once for each reason that concerns more than 1% of the bytes."""
    for one, total in _worth_saying(model):
        name = type(model).__name__
        if (name, one.reason) in session.warned:
            continue
        session.warned.add((name, one.reason))
        warnings.warn(
            f"{name}: {one.named}, {bytes_text(one.bytes)} of {bytes_text(total)}, not divided: "
            f"{one.reason}; {one.remedy}",
            stacklevel=4,
        )


def _worth_saying(model: torch.nn.Module) -> Iterator[tuple[Undivided, int]]:
    found = [one for one in undivided_in(model) if one.warns]
    distinct = {id(slot.value): slot.value for slot in slots_of(model)} if found else {}
    total = sum(value.numel() * value.element_size() for value in distinct.values())
    for one in found:
        if one.bytes > WORTH_A_WARNING * total:
            yield one, total
