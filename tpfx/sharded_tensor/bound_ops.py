"""What an eager op does with the shards of its operands, told by the rule that graphs bind for the op.

    bound = bound_op(aten.transpose.int, (x, 0, 1), {}, x)     # x: [4, 6], its dimension 0 split
    bound.operands, bound.results                              # the result is [6, 4], its dimension 1 split

The op is written down as a graph of one node over meta tensors, its rule is bound to it, and the split
dimensions of one operand, the owner, are followed to the other operands and the results. None where the rule
wants one of them whole, or contracts it, or there is no rule: such an op needs the whole tensors.

An op in place has the rule of its functional twin. Reductions of a split dimension are not bound here,
although `sum` has a rule for that: partial sums added in another order give another number than the whole.
What is exact all the same (a maximum, a norm for clipping gradients) is in `foreach.by_reduction`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from ..ir.annotations import dims_of, set_dims
from ..ir.axes import Dim
from ..ir.nodes import result_tensors, size_of
from ..ir.op_dims import Bound, Call
from ..ir.shards import Shards, SplitDims
from ..rules import Rule, pointwise, rule_for
from ..rules.whole_dims import unsplit
from ..torch_internals.distributed import COLLECTIVES
from .local_calls import Local, local_call
from .owned_axes import OwnedAxes, leaves
from .tensor import ShardedTensor

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Result:
    """One result: how it lies, None for as the owner does, and the shape and strides of the whole."""

    placement: Shards | None
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BoundOp:
    """How an op is carried out shard by shard.

    Attributes:
        operands: how each tensor argument must lie, in order, those in lists too.
        results: the results, one after the other.
        local: what each rank calls.
        named: whether tensors are among the arguments by name.
    """

    operands: tuple[SplitDims, ...]
    results: tuple[Result, ...]
    local: Local
    named: bool


_bound: dict[Any, BoundOp | None] = {}
_MOST = 4096  # so many calls are remembered: shapes that grow with each token would fill the memory


def bound_op(func: Any, args: Sequence[Any], kwargs: dict[str, Any], owner: ShardedTensor) -> BoundOp | None:
    """How an op is carried out where the owner lies as it does; None: on the whole tensors."""
    found = _rule_of(func)
    if found is None:
        return None
    twin, rule, plain = found
    if func.namespace != "aten":  # whose rules may change
        return _bind(twin, rule, args, kwargs, owner)
    assert owner.placement is not None
    parts: list[Any] = [func, owner.placement.dims, owner.placement.unfolding, owner.mesh.owned]
    _sign(parts, args, owner, plain)
    if kwargs:
        parts += kwargs
        _sign(parts, kwargs.values(), owner, plain)
    key = tuple(parts)
    try:
        return _bound[key]
    except KeyError:
        if len(_bound) >= _MOST:
            _bound.clear()
    bound = _bound[key] = _bind(twin, rule, args, kwargs, owner)
    return bound


def _sign(parts: list[Any], args: Iterable[Any], owner: ShardedTensor, plain: bool) -> None:
    """What of arguments counts: of numbers that a pointwise op computes with, that they are numbers."""
    for arg in args:
        if isinstance(arg, torch.Tensor):
            parts += (arg.shape, arg.stride(), arg.dtype, arg is owner)
        elif isinstance(arg, (list, tuple)):
            parts.append(len(arg))
            _sign(parts, arg, owner, plain)
        elif plain and isinstance(arg, (int, float)):
            parts.append(arg.__class__)
        else:
            parts += (arg.__class__, arg)


@functools.cache
def _twin(func: Any) -> Any:
    """An op that returns what another one writes into its first argument."""
    if not func._schema.is_mutable:
        return func
    if func is aten.zero_.default:
        return aten.zeros_like.default
    name = func._schema.name.split("::")[1]
    packet = getattr(getattr(torch.ops, func.namespace), name.removesuffix("_"), None)
    overload = getattr(packet, func._overloadname, None) if name.endswith("_") else None
    return None if overload is None or overload._schema.is_mutable else overload


@functools.cache
def written(func: Any) -> tuple[int, ...]:
    """The positions of the arguments that an op writes into; a collective does not say it of its first."""
    if func.namespace == COLLECTIVES:
        return (0,) if func._schema.name.endswith("_") else ()
    arguments = enumerate(func._schema.arguments)
    return tuple(
        at for at, argument in arguments if argument.alias_info is not None and argument.alias_info.is_write
    )


@functools.cache
def _allowed(func: Any) -> bool:
    """Whether an op returns tensors only, and draws no random numbers, which each rank would draw anew."""
    kinds = [str(result.type) for result in func._schema.returns]
    known = set(kinds) == {"Tensor"} or kinds in (["Tensor[]"], ["List[Tensor]"])
    return known and torch.Tag.nondeterministic_seeded not in func.tags


_POINTWISE = (pointwise.pointwise, pointwise.cast, pointwise.masked_fill)


def _rule_of(func: Any) -> tuple[Any, Rule, bool] | None:
    """The functional twin of an op, its rule, and whether it works on each element by itself."""
    found = _built_in(func)
    return found if found is not None or func.namespace == "aten" else _look_up(func)


def _look_up(func: Any) -> tuple[Any, Rule, bool] | None:
    twin = _twin(func)
    rule = rule_for(twin) if twin is not None and _allowed(func) else None
    if rule is None or rule.pattern is unsplit:
        return None
    return twin, rule, rule.pattern in _POINTWISE


@functools.cache
def _built_in(func: Any) -> tuple[Any, Rule, bool] | None:
    """Of torch's own ops, whose rules stay; those of others may be registered at any time."""
    return _look_up(func) if func.namespace == "aten" else None


def _bind(twin: Any, rule: Rule, args: Sequence[Any], kwargs: dict[str, Any], owner: Any) -> BoundOp | None:
    """Ask the rule of a call, and follow the owner's split dimensions."""
    node = _written_down(twin, args, kwargs)
    if not _run_on_meta(node):
        return None
    call = Call(node, dims_of, size_of)
    bound = rule.bind(call)
    bound.settle()
    tensors = [tensor for arg in (*args, *kwargs.values()) for tensor in tensors_in(arg)]
    if len(tensors) > 1 and rule.pattern not in _POINTWISE and _splits_one_index(owner):
        return None
    first = next(at for at, tensor in enumerate(tensors) if tensor is owner)
    owned = _owned(bound, bound.operands[first], owner.placement, result_tensors(node))
    named = any(isinstance(arg, torch.Tensor) for arg in kwargs.values())
    return None if owned is None else _decided(call, bound, rule, owned, owner, named)


def _written_down(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Node:
    """A call as the node of a graph, its operands inputs of the graph with dimensions of their own."""
    graph = Graph()

    def given(arg: Any) -> Any:
        if isinstance(arg, (list, tuple)):
            return [given(item) for item in arg]
        if not isinstance(arg, torch.Tensor):
            return arg
        node = graph.placeholder("x")
        node.meta["val"] = torch.empty_strided(arg.shape, arg.stride(), dtype=arg.dtype, device="meta")
        set_dims(node, [Dim(size) for size in arg.shape])
        return node

    named = {name: given(arg) for name, arg in kwargs.items()}
    return graph.call_function(target, tuple(map(given, args)), named)


def _splits_one_index(owner: ShardedTensor) -> bool:
    """Whether one rank has the only index of a dimension. Dimensions of size 1 are not told apart, so that
    another operand would have it on every rank."""
    assert owner.placement is not None
    return any(owner.shape[dim] == 1 for dim, _ in owner.placement.dims)


def tensors_in(arg: Any) -> list[torch.Tensor]:
    """The tensors of an argument: itself, or those of a list."""
    items = arg if isinstance(arg, (list, tuple)) else (arg,)
    return [item for item in items if isinstance(item, torch.Tensor)]


def _run_on_meta(node: Node) -> bool:
    """Find the shapes and strides of the results; False where that fails, as the op itself then will."""

    def meta(value: Node) -> Any:
        return value.meta["val"]

    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), meta)
    target: Any = node.target
    try:
        value = node.meta["val"] = target(*args, **kwargs)
    except (RuntimeError, IndexError, TypeError, ValueError):
        return False
    return all(
        isinstance(item, torch.Tensor) for item in (value if isinstance(value, (list, tuple)) else [value])
    )


def _owned(bound: Bound, dims: list[Dim], placement: Shards, results: list[torch.Tensor]) -> OwnedAxes | None:
    """What ranks own of each axis; None where the op needs more than that, or loses a split dimension."""
    owned = OwnedAxes()
    if placement.unfolding or not all(owned.split(dims[dim], own) for dim, own in placement.dims):
        return None
    if owned.touches([*bound.whole, *bound.contracted]):
        return None
    if not all(owned.once(each) for each in (*bound.operands, *bound.results)):
        return None
    filled = [made for made, value in zip(bound.results, results, strict=True) if value.numel()]
    kept = all(_has_some_of(made, dims[dim]) for made in filled for dim, _ in placement.dims)
    return owned if kept else None


def _has_some_of(made: list[Dim], dim: Dim) -> bool:
    """Whether a result has at least some indices of a dimension: one that is gone was read at one place."""
    axes = set(leaves(dim))
    return any(leaf in axes for other in made for leaf in leaves(other))


def _decided(
    call: Call, bound: Bound, rule: Rule, owned: OwnedAxes, owner: ShardedTensor, named: bool
) -> BoundOp | None:
    assert owner.placement is not None
    given = owner.placement.dims
    operands = [owned.placement(dims) for dims in bound.operands]
    results = [owned.placement(dims) for dims in bound.results]
    local = local_call(call, rule, operands[0], results[0], owner.mesh.owned)
    if local is None or None in operands or None in results:
        return None
    return BoundOp(
        tuple(dims for dims in operands if dims is not None),
        tuple(
            Result(None if dims == given else Shards(dims), tuple(value.shape), value.stride())
            for dims, value in zip(results, call.results, strict=True)
            if dims is not None
        ),
        local,
        named,
    )
