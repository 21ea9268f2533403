"""Weights that no graph has reached, divided evenly as storage: no rank holds more than its share of them.

store_evenly(weights, mesh)      # each rank has some rows, say; eager code gathers them when it looks

The first graph that takes such a weight chooses how it lies from then on.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..ir.shards import even_layout
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
