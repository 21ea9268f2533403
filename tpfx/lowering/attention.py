"""Give an attention that knows of groups the heads of keys and values themselves, instead of each repeated.

attention(q, repeat(keys, 3), repeat(values, 3))   becomes   attention(q, keys, values)

Repeated, they are copied at each step, several times the cache. The numbers are the same to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..ir.nodes import size_of
from .rank_graph import Rank

aten = torch.ops.aten

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
