"""Write the graph of one rank: local shapes, its slices and offsets, and real collectives.

all_reduce(linear)   becomes   wait_tensor(_c10d_functional.all_reduce(linear, "sum", group))
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch.fx import Graph, Node

from ..ir.annotations import choice_of, layout_of
from ..ir.layout import Partial
from ..ir.nodes import is_check, is_getitem, is_tensor
from ..ir.provenance import ORIGIN, add_represented, set_origin
from ..ir.resharding import all_gather, all_reduce, shard, to_partial
from ..kernels.collectives import BROADCASTS, gather_shards
from ..lowering.attention import BY_FUNCTIONS, flex_attention, group_heads
from ..lowering.ops import LOWERINGS
from ..lowering.rank_graph import Rank, emit_gather, emit_random, emit_reduce, emit_shard, emit_to_partial
from ..lowering.shard_calls import STRIDED, call_in_memory, call_on_shards, lay_out
from ..rules import may_draw, may_draw_inside, rule_of
from ..torch_internals.fx import OpOverload

aten = torch.ops.aten


def localize(graph: Graph, rank: int, ranks: int, group: str, draws: bool) -> Graph:
    """The graph that one rank of a parallel graph runs; `draws`: it is the first of its process."""
    local, inside = Rank(Graph(), rank, ranks, group, draws), set()
    for node in graph.nodes:
        before = len(local.graph.nodes)
        local.made[node] = _emit(local, node)
        _note(local, node, before)
        if may_draw_inside(node):
            inside.add(local.made[node])
    _fuse_biases(local)
    group_heads(local)
    lay_out(local.graph)
    # A rank may not need what it sends: collectives stay, or the others would wait for it.
    local.graph.eliminate_dead_code(lambda node: _must_stay(node) or node in inside)
    return local.graph


def _note(local: Rank, node: Node, before: int) -> None:
    """Record where what was written for a node comes from; `before` counts the nodes written earlier."""
    for made in islice(reversed(local.graph.nodes), len(local.graph.nodes) - before):
        if made.op != "output" and "stack_trace" not in made.meta:
            made.meta = {key: node.meta[key] for key in ORIGIN if key in node.meta}
        set_origin(made, node.name)
    made = local.made[node]
    if isinstance(made, Node):
        add_represented(made, node.name)


def _fuse_biases(local: Rank) -> None:
    """linear → add of a vector: one op again, which the bias was kept out of while layouts were chosen."""
    vectors = {made for node, made in local.made.items() if node.op == "placeholder" and _is_vector(node)}
    for node in local.graph.find_nodes(op="call_function", target=aten.add.Tensor):
        product, bias = node.args[:2]
        if node.kwargs or bias not in vectors or not isinstance(product, Node) or len(product.users) != 1:
            continue
        if product.target is aten.linear.default and len(product.args) == 2:
            node.target, node.args = aten.linear.default, (*product.args, bias)
            local.graph.erase_node(product)


def _is_vector(node: Node) -> bool:
    return is_tensor(node) and node.meta["val"].dim() == 1


def _must_stay(node: Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    target = node.target
    if not isinstance(target, OpOverload):
        return target in (*BROADCASTS, gather_shards)
    return target.namespace == "_c10d_functional" or target._schema.is_mutable or is_check(node)


def _emit(local: Rank, node: Node) -> Any:
    if node.op != "call_function":
        return local.graph.node_copy(node, local.of)
    special = _MARKERS.get(node.target)
    if special is not None:
        return special(local, node)
    if is_getitem(node) and isinstance(local.made[node.args[0]], tuple):  # type: ignore[index]
        return local.made[node.args[0]][node.args[1]]  # type: ignore[index]
    if may_draw(node):
        return emit_random(local, node)
    own = _ALSO_WHOLE.get(node.target)
    if own is not None:
        return own(local, node)
    choice, rule = choice_of(node), rule_of(node)
    if choice is None or choice.kind != "split" or rule is None:
        return _nothing_to_add(local, node) or local.graph.node_copy(node, local.of)
    return call_on_shards(local, node) if rule.lower is None else LOWERINGS[rule.lower](local, node)


def _nothing_to_add(local: Rank, node: Node) -> Any:
    """add(x, zero): x, where this rank's shard of a whole value is nothing."""
    if (
        node.target is not torch.ops.aten.add.Tensor
        or not isinstance(layout_of(node), Partial)
        or local.rank == 0
    ):
        return None
    operands = [argument for argument in node.args if isinstance(argument, Node)]
    zero = [argument.target is to_partial for argument in operands]
    if node.kwargs or sum(zero) != 1:
        return None
    other, gone = operands[zero.index(False)], operands[zero.index(True)]
    same = (
        other.meta["val"].shape == node.meta["val"].shape
        and other.meta["val"].dtype == node.meta["val"].dtype
    )
    return local.made[other] if same and gone is not other and len(other.users) == 1 else None


_Emit = Callable[[Rank, Node], Any]

_MARKERS: dict[Any, _Emit] = {
    all_reduce: emit_reduce,
    all_gather: emit_gather,
    shard: emit_shard,
    to_partial: emit_to_partial,
}

# What a rank calls in a way of its own where it has all of the operands, too.
_ALSO_WHOLE: dict[Any, _Emit] = {
    **dict.fromkeys(STRIDED, call_in_memory),
    **dict.fromkeys(BY_FUNCTIONS, flex_attention),
}
