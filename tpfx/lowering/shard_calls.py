"""Call an op on a rank's shards, as its rule's row says.

avg_pool2d(x, [2, 2])     becomes     avg_pool2d(pad(x_shard), [2, 2])[:0]     where the shard is empty
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from ..errors import ShardingError
from ..ir.annotations import bound_of, choice_of, dims_of
from ..ir.axes import Dim
from ..ir.layout import Split, carries, local_size
from ..ir.nodes import arguments, is_tensor, parameters, tensor_nodes
from ..ir.op_dims import Dims
from ..ir.provenance import copy_origin
from ..kernels.collectives import BROADCASTS
from ..kernels.slices import dense_rows, restride
from ..rules import Rule, rule_of
from ..rules.table import TABLE
from ..torch_internals.fx import OpOverload
from .rank_graph import Rank, emit_shape, split_of

aten = torch.ops.aten


def call_on_shards(local: Rank, node: Node, **changed: Any) -> Any:
    """The op of a node that is carried out in a split, called on this rank's shards.

    Args:
        local: the rank's graph.
        node: the call in the parallel graph.
        changed: arguments that are others on this rank.

    Returns:
        The rank's node; a tuple of nodes for an op with several results whose empty shards are padded.
    """
    rule = rule_of(node)
    assert rule is not None, "what has no rule is not split"
    if rule.shape is not None:
        changed |= _local_shape(local, node, rule.shape)
    if rule.pad_empty_shards:
        return _prepared(local, node, rule, changed)
    copied = local.graph.node_copy(node, local.of)
    for name, value in changed.items():
        _set_argument(copied, name, value)
    return copied


# They go by places in memory, not by dimensions.
STRIDED = (aten.as_strided.default, aten.as_strided_scatter.default)


def call_in_memory(local: Rank, node: Node) -> Node:
    """An op of `STRIDED`, on an operand that lies in memory as it did in the whole graph.

    Raises:
        ShardingError: how it lay there depends on sizes that vary, and is not dense.
    """
    operand = node.args[0]
    assert isinstance(operand, Node)
    value, made = operand.meta["val"], local.graph.node_copy(node, local.of)
    stride, offset = value.stride(), value.storage_offset()
    with local.graph.inserting_before(made):
        if all(type(one) is int for one in (*stride, offset)):
            laid = local.call(restride, made.args[0], tuple(stride), offset)
        elif value.is_contiguous() and offset == 0:
            laid = local.call(aten.clone.default, made.args[0], memory_format=torch.contiguous_format)
        else:
            raise ShardingError(
                f"{node.name} takes {node.target} of a tensor with strides {tuple(stride)}, which vary: a "
                "device cannot be given it so; make it contiguous first"
            )
    made.args = (laid, *made.args[1:])
    return made


def size_or_unit(local: Rank, dim: Dim, split: Split) -> int:
    """The size of this rank's shard of a dimension, or of one unit where it has nothing."""
    unit = Split(split.axes)
    unit.rank_intervals = (dict.fromkeys(split.axes, (0, 1)),)
    return int(local_size(dim, split, local.rank)) or int(local_size(dim, unit, 0))


def _local_shape(local: Rank, node: Node, name: str) -> dict[str, Any]:
    """What the argument that gives the result's shape is on this rank, where it is another."""
    choice = choice_of(node)
    assert choice is not None
    split = next((layout for layout in choice.results if isinstance(layout, Split)), None)
    if split is None:
        return {}
    return {name: emit_shape(local, dims_of(node), map_arg(arguments(node)[name], local.of), split)}


def _set_argument(node: Node, name: str, value: Any) -> None:
    assert isinstance(node.target, OpOverload)
    position = [known for known, _ in parameters(node.target)].index(name)
    if name in node.kwargs or position >= len(node.args):
        node.kwargs = {**node.kwargs, name: value}
    else:
        node.args = (*node.args[:position], value, *node.args[position + 1 :])


def _prepared(local: Rank, node: Node, rule: Rule, changed: dict[str, Any]) -> Any:
    """The call with zeros for what a rank has nothing of; what stood for nothing is cut from its results."""
    split, bound = split_of(node), bound_of(node)
    assert bound is not None
    operands = {
        operand: _operand(local, local.of(operand), dims, split)
        for operand, dims in zip(tensor_nodes(node), bound.operands, strict=True)
    }
    given = map_arg(arguments(node), lambda operand: operands.get(operand) or local.of(operand)) | changed
    made = _called(local, node, given)
    if is_tensor(node):
        return _result(local, made, bound.results[0], split)
    results = iter(bound.results)
    items = [local.call(operator.getitem, made, index) for index in range(len(node.meta["val"]))]
    return tuple(
        _result(local, item, next(results), split) if isinstance(value, torch.Tensor) else item
        for item, value in zip(items, node.meta["val"], strict=True)
    )


def _operand(local: Rank, value: Node, dims: Dims, split: Split) -> Node:
    """An operand with zeros, enough for one unit, in the place of what this rank has nothing of."""
    missing = [size_or_unit(local, dim, split) if _is_empty(local, dim, split) else 0 for dim in dims]
    amounts = [amount for extent in reversed(missing) for amount in (0, extent)]
    return local.call(aten.constant_pad_nd, value, amounts) if any(amounts) else value


def _result(local: Rank, value: Node, dims: Dims, split: Split) -> Node:
    """A result without the indices that stood for nothing."""
    for at, dim in enumerate(dims):
        if _is_empty(local, dim, split):
            value = local.call(aten.slice.Tensor, value, at, 0, 0)
    return value


def _is_empty(local: Rank, dim: Dim, split: Split) -> bool:
    return carries(dim, split) and local_size(dim, split, local.rank) == 0


def _called(local: Rank, node: Node, given: dict[str, Any]) -> Node:
    """A call of a node's op with these arguments, by name."""
    assert isinstance(node.target, OpOverload)
    named = {argument.name for argument in node.target._schema.arguments if argument.kwarg_only}
    args = [value for name, value in given.items() if name not in named]
    return local.call(node.target, *args, **{name: value for name, value in given.items() if name in named})


def lay_out(graph: Graph) -> None:
    """Lay out what ops of a rank's graph ask, or take unasked, to lie otherwise; what lies so is not copied.

    In the whole graph it did, or another op was chosen; on a rank it comes out of shards and collectives.
    """
    for op, rule in _INSISTING.items():
        for node in graph.find_nodes(op="call_function", target=op):
            node.args = _laid_out(node, rule, op, node.args)
    for target in BROADCASTS:  # what one rank has drawn, all others get, in no order but its own
        for node in graph.find_nodes(op="call_function", target=target):
            called = [(at, _INSISTING[op]) for at, op in enumerate(node.args) if _insists(op)]
            for at, rule in called:
                op, given = node.args[at], node.args[at + 1]
                node.args = (*node.args[: at + 1], _laid_out(node, rule, op, given), *node.args[at + 2 :])


def _insists(given: Any) -> bool:
    return isinstance(given, OpOverload) and given in _INSISTING


def _laid_out(node: Node, rule: Rule, op: OpOverload, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of an op that a node calls, laid out as its rule says."""
    laid, made = list(args), dict[tuple[Node, str], Node]()
    for at, (formal, arg) in enumerate(zip(op._schema.arguments, args, strict=False)):
        changes = _changes(rule, formal.name)
        if isinstance(arg, Node) and changes and "Tensor" in str(formal.type):
            key = arg, str(changes)
            laid[at] = made[key] if key in made else _changed(node, arg, changes)
            made[key] = laid[at]
    return tuple(laid)


def _changes(rule: Rule, name: str) -> list[tuple[Any, ...]]:
    """What lays out an operand: functions of it, with their further arguments."""
    order = dict(rule.memory_order).get(name)
    if order is not None:
        back = [order.index(dim) for dim in range(len(order))]
        return [(aten.permute.default, list(order)), (aten.contiguous.default,), (aten.permute.default, back)]
    if rule.contiguous:
        return [(aten.contiguous.default,)]
    return [(dense_rows,)] if name in rule.dense_rows else []


def _changed(node: Node, value: Node, changes: list[tuple[Any, ...]]) -> Node:
    """A value that functions are called with first, one after the other."""
    for function, *given in changes:
        if function is not value.target:
            with node.graph.inserting_before(node):
                value = node.graph.call_function(function, (value, *given))
            copy_origin(node, value)
    return value


_INSISTING = {
    op: rule for op, rule in TABLE.items() if rule.memory_order or rule.contiguous or rule.dense_rows
}
