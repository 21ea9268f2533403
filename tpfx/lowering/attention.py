"""What a rank does for attention.

Give one that knows of groups the heads of keys and values themselves, instead of each repeated:

attention(q, repeat(keys, 3), repeat(values, 3))   becomes   attention(q, keys, values)

Repeated, they are copied at each step, several times the cache. The numbers are the same to the bit.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.fx import Node

from ..ir.annotations import choice_of, dims_of
from ..ir.layout import carries
from ..ir.nodes import size_of, tensor_nodes
from ..ir.shards import pieces
from ..kernels.scores import attention_shard
from .rank_graph import Rank, split_of

aten, higher_order = torch.ops.aten, torch.ops.higher_order
BY_FUNCTIONS = (higher_order.flex_attention, higher_order.flex_attention_backward)

_KNOWS_GROUPS = aten._scaled_dot_product_flash_attention_for_cpu.default


def group_heads(local: Rank) -> None:
    """Rewrite a rank's graph; what then is not used any more stays in it."""
    attentions = local.graph.find_nodes(op="call_function", target=_KNOWS_GROUPS)
    known = {made: node for node, made in local.made.items() if isinstance(made, Node)} if attentions else {}
    for attention in attentions:
        query, *repeated = attention.args[:3]
        once = [_repeated(known.get(one)) for one in repeated]
        if _heads(once[0]) == _heads(once[1]) is not None:
            attention.args = (query, *map(local.of, once), *attention.args[3:])


def flex_attention(local: Rank, node: Node) -> Any:
    """Attention by functions of scores, which are told the examples and heads that this rank has.

    A rank that has none calls nothing: products of what is empty are of the shapes of the results.
    """
    args, query, choice = local.args(node), next(iter(tensor_nodes(node))), choice_of(node)
    back = node.target is higher_order.flex_attention_backward
    buffers: Any = args["score_mod_other_buffers"] if back else ()
    wanted = tuple(isinstance(value, torch.Tensor) for value in node.meta["val"][3]) if back else ()
    owned: tuple[Any, ...] = ((), ())
    if choice is not None and choice.kind == "split":
        split = split_of(node)
        divided = [dim if carries(dim, split) else None for dim in dims_of(query)[:2]]
        owned = tuple(() if dim is None else pieces(dim, split, local.rank) for dim in divided)
        if any(dim is not None and not mine for dim, mine in zip(divided, owned, strict=True)):
            return _nothing(local, node, args, buffers, wanted)
    return local.call(attention_shard, node.target, tuple(args), owned, wanted, *args.values())


def _nothing(local: Rank, node: Node, args: dict[str, Any], buffers: Any, wanted: tuple[bool, ...]) -> Any:
    """The results on a rank that has no example, or no head."""
    if node.target is higher_order.flex_attention_backward:
        zeros = partial(local.call, aten.zeros_like.default)
        made = [zeros(one) if asked else None for one, asked in zip(buffers, wanted, strict=True)]
        return (*(zeros(args[name]) for name in _GIVEN), tuple(made))
    key, value = (local.call(aten.sum.dim_IntList, args[name], [0, 1]) for name in _GIVEN[1:])
    sides = local.call(aten.matmul.default, local.call(aten.t.default, key), value)
    out = local.call(aten.matmul.default, args["query"], sides)
    sums = local.call(
        aten.sum.dim_IntList, out, [-1], dtype=torch.promote_types(node.meta["val"][0].dtype, torch.float32)
    )
    return (out, *[sums for _ in node.meta["val"][1:]])


_GIVEN = ("query", "key", "value")


def _heads(value: Node | None) -> Any:
    return None if value is None else _sizes(value)[1]


def _repeated(value: Node | None) -> Any:
    """What a value has each head of several times in a row, `[b, g r, s, d]` from `[b, g, s, d]`."""
    expanded = _operand(value, aten.reshape.default)
    expanded = _operand(expanded, aten.clone.default) or expanded
    alone = _operand(expanded, aten.expand.default)
    source = _operand(alone, aten.unsqueeze.default)
    if value is None or source is None or alone.args[1] not in (2, -3):
        return None
    before, between, after = (_sizes(one) for one in (source, expanded, value))
    if len(before) != 4 or between != [*before[:2], between[2], *before[2:]]:
        return None
    return source if after == [before[0], before[1] * between[2], *before[2:]] else None


def _operand(value: Node | None, op: Any) -> Any:
    return value.args[0] if value is not None and value.target is op else None


def _sizes(value: Node) -> list[Any]:
    return [size_of(extent) for extent in value.meta["val"].shape]
