"""Layers that are alike, next to each other: written once.

runs([Layer("layers", 0, "a"), Layer("layers", 1, "a"), Layer("layers", 2, "a"), Layer("", None, "b")])
# [range(0, 3), range(3, 4)]
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ..ir.provenance import stem_of

SHORTEST = 3  # fewer layers than these are written one by one


@dataclass(frozen=True)
class Layer:
    """A numbered part of a model, `layers.3`: its stem, its number, and what makes it like another."""

    stem: str
    number: int | None
    likeness: Hashable


def runs(layers: Sequence[Layer]) -> list[range]:
    """The positions of layers, those that follow one another and are alike together."""
    found: list[range] = []
    for at, layer in enumerate(layers):
        last = found[-1] if found else None
        if last is not None and _follows(layers[last[-1]], layer):
            found[-1] = range(last.start, at + 1)
        else:
            found.append(range(at, at + 1))
    return [
        part
        for run in found
        for part in ([run] if len(run) >= SHORTEST else [range(at, at + 1) for at in run])
    ]


def _follows(before: Layer, layer: Layer) -> bool:
    if before.number is None or layer.number != before.number + 1:
        return False
    return (before.stem, before.likeness) == (layer.stem, layer.likeness)


def span(first: str, last: str) -> str:
    """layers.0 and layers.31 as layers.0–31"""
    return f"{first}–{stem_of(last)[1]}"
