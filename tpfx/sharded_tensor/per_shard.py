"""An eager op on the parts of a sharded tensor: operands to ranks, a call for each, a result of parts.

columns = [spread(arg, owner, placement, shape) for arg in args]  # for each argument, its value on each rank
made_of(owner, on_each(mesh, func, columns), placement, shape)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ..ir.shards import Shards
from ..kernels.slices import take
from ..runtime.mesh import Mesh
from ..runtime.thread_runtime import runtime_of
from .storage import Sharded
from .tensor import ShardedTensor, copy_dynamic

log = logging.getLogger("tpfx")

Column = Sequence[Any]  # the value of one argument on each rank
Columns = list[Column]

# Elements from which on a rank's share of an op on the CPU is worth waking its thread, some 30 us.
WORTH_A_THREAD = 2**16


def spread(value: Any, owner: ShardedTensor, placement: Shards, shape: Sequence[int]) -> Column:
    """An operand that broadcasts to `shape`, as each rank needs it where the result lies as `placement`."""
    own_shards = owner.shards
    assert own_shards is not None
    if value is owner and len(shape) == owner.dim():
        return own_shards
    if not isinstance(value, torch.Tensor):
        return (value,) * len(own_shards)
    new = len(shape) - value.dim()
    dims = tuple(
        (dim - new, own) for dim, own in placement.dims if dim >= new and value.shape[dim - new] == shape[dim]
    )
    if isinstance(value, ShardedTensor):
        held = value.held
        if isinstance(held, Sharded) and value.mesh.same_as(owner.mesh):
            if held.placement.dims == dims:
                return held.parts
            if not held.placement:
                own = zip(owner.mesh.owned, held.parts, strict=True)
                return [take(part, dims, rank) for rank, part in own]
        value = gathered_for(value, "an operand that lies otherwise")
    ranks = zip(owner.mesh.owned, own_shards, strict=True)
    return [_on(take(value, dims, rank), part.device) for rank, part in ranks]


def everywhere(value: Any, owner: ShardedTensor) -> Column:
    """An argument that every rank needs whole: an index, a number."""
    own_shards = owner.shards
    assert own_shards is not None
    if isinstance(value, torch.Tensor):
        if value is owner:
            return own_shards
        whole = value.gathered() if isinstance(value, ShardedTensor) else value
        return [_on(whole, part.device) for part in own_shards]
    if isinstance(value, (list, tuple)):
        items = [everywhere(item, owner) for item in value]
        return list(zip(*items, strict=True)) or [()] * len(own_shards)
    return (value,) * len(own_shards)


def _on(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    number = value.dim() == 0 and value.device.type == "cpu"
    return value if number or value.device == device else value.to(device)


def on_each(
    mesh: Mesh, func: Callable[..., Any], columns: Iterable[Column], kwargs: Mapping[str, Any] | None = None
) -> list[Any]:
    """Call an op once for each rank: all at once, in the ranks' threads, where that pays."""
    calls = [partial(func, *row, **(kwargs or {})) for row in zip(*columns, strict=True)]
    runtime = runtime_of(mesh) if _worth_threads(mesh, calls) else None
    return [call() for call in calls] if runtime is None else runtime.run(calls)


def _worth_threads(mesh: Mesh, calls: Sequence[partial[Any]]) -> bool:
    """Whether each of several CPU ranks has much to do; GPUs work on their own, and views are no work."""
    if len(calls) < 2 or mesh.devices[0].type != "cpu" or getattr(calls[0].func, "is_view", False):
        return False
    first = calls[-1].args[0]
    tensors = first if isinstance(first, (list, tuple)) else (first,)
    return sum(one.numel() for one in tensors if isinstance(one, torch.Tensor)) >= WORTH_A_THREAD


def made_of(
    owner: ShardedTensor,
    parts: Sequence[Any],
    placement: Shards,
    shape: Sequence[int],
    stride: Sequence[int] | None = None,
) -> ShardedTensor:
    """The result of an op of which these are the parts."""
    made = ShardedTensor(owner.mesh, parts[0], shape, held=Sharded(tuple(parts), placement), stride=stride)
    copy_dynamic(owner, made)
    return made


_reported: set[str] = set()


def gathered_for(tensor: ShardedTensor, why: Any) -> torch.Tensor:
    """The whole, for an op that needs it; logged once for each reason."""
    if tensor.placement and str(why) not in _reported:
        _reported.add(str(why))
        log.debug("%r is gathered for %s, outside of the compiled graphs", tensor, why)
    return tensor.gathered()
