"""What a rank's graph calls that is written in Python, as ATen ops, where the ops do not depend on shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from ..ir.shards import Pieces, SplitDims
from ..kernels.lookups import embedding_shard
from ..kernels.slices import take

aten = torch.ops.aten

Emit = Callable[..., Node]

ORIGIN = "expanded_from"  # in the meta of a node: the name of that which it is made of


def expanded(graph: Graph) -> Graph:
    """A copy of a graph, with ops in the place of functions."""
    made = Graph()
    known: dict[Node, Node] = {}
    for node in graph.nodes:
        found = _expand(made, node, known)
        known[node] = made.node_copy(node, known.__getitem__) if found is None else found
        if node.op == "output":
            return made
    return made


def _expand(graph: Graph, node: Node, known: dict[Node, Node]) -> Node | None:
    """The last of the ops that a node becomes; None where it stays as it is."""
    expand = _EXPANSIONS.get(node.target) if node.op == "call_function" and not node.kwargs else None
    if expand is None:
        return None

    def emit(op: Any, *args: Any) -> Node:
        call = graph.call_function(op, args)
        call.meta[ORIGIN] = node.name
        return call

    args = [known[arg] if isinstance(arg, Node) else arg for arg in node.args]
    return expand(emit, *args)


def _embedding_shard(emit: Emit, weight: Node, ids: Node, owned: Pieces, size: int) -> Node | None:
    if len(owned) != 1:
        return None
    ((start, stop),) = owned
    before = emit(aten.logical_and.default, emit(aten.ge.Scalar, ids, 0), emit(aten.lt.Scalar, ids, start))
    after = emit(aten.logical_and.default, emit(aten.ge.Scalar, ids, stop), emit(aten.lt.Scalar, ids, size))
    elsewhere = emit(aten.logical_or.default, before, after)
    here = emit(aten.masked_fill.Scalar, emit(aten.sub.Tensor, ids, start), elsewhere, 0)
    rows = emit(aten.embedding.default, weight, here)
    return emit(aten.masked_fill.Scalar, rows, emit(aten.unsqueeze.default, elsewhere, -1), 0)


def _take(emit: Emit, whole: Node, dims: SplitDims, rank: int) -> Node | None:
    if not dims:
        return None
    for dim, owned in dims:
        intervals: Sequence[tuple[int, int]] = owned[rank] or ((0, 0),)
        parts = [emit(aten.slice.Tensor, whole, dim, start, stop) for start, stop in intervals]
        whole = parts[0] if len(parts) == 1 else emit(aten.cat.default, parts, dim)
    return whole


_EXPANSIONS: dict[Any, Callable[..., Node | None]] = {embedding_shard: _embedding_shard, take: _take}
