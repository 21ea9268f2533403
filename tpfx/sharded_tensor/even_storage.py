"""Weights that no graph has reached, divided evenly as storage: no rank holds more than its share of them.

store_evenly(weights, mesh)      # each rank has some rows, say; eager code gathers them when it looks

The first graph that takes such a weight chooses how it lies from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import torch

from ..ir.shards import Pieces, Shards, even_sizes
from ..runtime.mesh import Mesh
from .tensor import ShardedTensor


def store_evenly(weights: Iterable[object], mesh: Mesh) -> None:
    """Divide those of the weights that are whole still; of the others it counts what ranks hold of them.

    Args:
        weights: parameters and buffers, tied ones any number of times.
        mesh: the devices.
    """
    sharded = {id(one): one for one in weights if isinstance(one, ShardedTensor) and one.mesh.same_as(mesh)}
    loads, whole = [0.0] * mesh.size, []
    for weight in sharded.values():
        if weight.placement is None:
            whole.append(weight)
        else:
            _count(weight, loads)
    for weight in sorted(whole, key=lambda one: -one.numel() * one.element_size()):
        weight.distribute(even_layout(weight.shape, loads), chosen=False)
        _count(weight, loads)


def _count(weight: ShardedTensor, loads: list[float]) -> None:
    for rank, size in enumerate(weight.resident_bytes):
        loads[rank] += size


def even_layout(shape: torch.Size | Sequence[int], loads: Sequence[float]) -> Shards:
    """One interval for each rank of the dimension that divides most evenly; a number lies on every rank.

    Args:
        shape: of the tensor.
        loads: bytes that each rank has already: those with the fewest get what is left over.
    """
    ranks = len(loads)
    dim = min(range(len(shape)), key=lambda at: -(-shape[at] // ranks) / max(1, shape[at]), default=None)
    if dim is None or 0 in shape or shape[dim] == 1:
        return Shards()
    ends = accumulate(even_sizes(shape[dim], loads), initial=0)
    owned: tuple[Pieces, ...] = tuple(((a, b),) if a < b else () for a, b in pairwise(ends))
    return Shards(((dim, owned),))
