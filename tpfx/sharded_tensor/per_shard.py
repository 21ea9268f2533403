"""An eager op on the shards of a sharded tensor: operands to ranks, a call for each, a result of shards.

bound = bound_op(func, args, kwargs, owner)               # how the operands must lie, and the results
run_bound(func, args, kwargs, owner, bound)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ..ir.shards import Shards, SplitDims
from ..kernels.slices import take
from ..runtime.mesh import Mesh
from ..runtime.thread_runtime import runtime_of
from .bound_ops import BoundOp
from .storage import Sharded, same_memory
from .tensor import ShardedTensor, copy_dynamic

log = logging.getLogger("tpfx")

Column = Sequence[Any]  # the value of one argument on each rank

# Elements from which on a rank's share of an op on the CPU is worth waking its thread, some 30 us.
WORTH_A_THREAD = 2**16


def shard_argument(value: torch.Tensor, owner: ShardedTensor, dims: SplitDims) -> Column:
    """A tensor as each rank of the owner needs it: split so, whatever it is now."""
    mesh = owner.mesh
    if isinstance(value, ShardedTensor):
        held = value.held
        if isinstance(held, Sharded) and (value is owner or value.mesh.same_as(mesh)):
            if held.placement.dims == dims:
                return held.shards
            if not held.placement:
                return [take(shard, dims, rank) for rank, shard in zip(mesh.owned, held.shards, strict=True)]
        value = gathered_for(value, "an operand that lies otherwise")
    return [_on(take(value, dims, rank) if dims else value, mesh.devices[rank]) for rank in mesh.owned]


def replicate_argument(value: Any, owner: ShardedTensor) -> Column:
    """An argument that every rank needs whole: an index, a number."""
    own_shards = owner.shards
    assert own_shards is not None
    if isinstance(value, torch.Tensor):
        if value is owner:
            return own_shards
        whole = value.gathered() if isinstance(value, ShardedTensor) else value
        return [_on(whole, shard.device) for shard in own_shards]
    if isinstance(value, (list, tuple)):
        items = [replicate_argument(item, owner) for item in value]
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
    shards: Sequence[Any],
    placement: Shards,
    shape: Sequence[int],
    stride: Sequence[int] | None = None,
) -> ShardedTensor:
    """The result of an op of which these are the shards."""
    held = Sharded(tuple(shards), placement)
    made = ShardedTensor.holding(held, owner.mesh, shards[0], shape, stride=stride)
    copy_dynamic(owner, made)
    return made


def run_bound(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], owner: ShardedTensor, bound: BoundOp
) -> Any:
    """Carry out an op that is bound: a call for each rank, and results of their shards; None where a view
    of the shards is none."""
    operands = iter(bound.operands)
    call, columns = bound.local.op or func, [_column(arg, owner, operands) for arg in args]
    if bound.named:
        rows = zip(*(_column(arg, owner, operands) for arg in kwargs.values()), strict=True)
        columns.append([dict(zip(kwargs, row, strict=True)) for row in rows])
        call, kwargs = partial(_with_named, call), {}
    if bound.local.arguments is not None:
        columns = [columns[0], *zip(*bound.local.arguments, strict=True)]
    results = on_each(owner.mesh, call, columns, kwargs)
    if func._schema.is_mutable:
        return owner
    if func.is_view and not all(map(_looks_at, results, owner.shards or ())):
        return None
    return _made_of_bound(func, results, owner, bound)


def _column(arg: Any, owner: ShardedTensor, operands: Iterator[SplitDims]) -> Column:
    """An argument as each rank needs it; its tensors as the next of the operands."""
    if isinstance(arg, torch.Tensor):
        return shard_argument(arg, owner, next(operands))
    if isinstance(arg, (list, tuple)) and any(isinstance(item, torch.Tensor) for item in arg):
        return list(zip(*(_column(item, owner, operands) for item in arg), strict=True))
    return (arg,) * len(owner.mesh.owned)


def _with_named(func: Callable[..., Any], *args: Any) -> Any:
    """A call with the arguments by name last, as a dict."""
    return func(*args[:-1], **args[-1])


def _looks_at(result: Any, shard: torch.Tensor) -> bool:
    """Whether a result is a view of a shard; of nothing, everything is."""
    return not isinstance(result, torch.Tensor) or result.numel() == 0 or same_memory(result, shard)


def _made_of_bound(func: Any, results: Sequence[Any], owner: ShardedTensor, bound: BoundOp) -> Any:
    """Sharded tensors of what each rank has made."""
    assert owner.placement is not None
    rows = [result if isinstance(result, (list, tuple)) else (result,) for result in results]
    made = [
        made_of(
            owner,
            shards,
            owner.placement if result.placement is None else result.placement,
            result.shape,
            result.stride,
        )
        for result, shards in zip(bound.results, zip(*rows, strict=True), strict=True)
    ]
    if isinstance(results[0], torch.Tensor):
        return made[0]
    return made if len(func._schema.returns) == 1 else tuple(made)


_reported: set[str] = set()


def gathered_for(tensor: ShardedTensor, why: Any) -> torch.Tensor:
    """The whole, for an op that needs it; logged once for each reason."""
    if tensor.placement and str(why) not in _reported:
        _reported.add(str(why))
        log.debug("%r is gathered for %s, outside of the compiled graphs", tensor, why)
    return tensor.gathered()
