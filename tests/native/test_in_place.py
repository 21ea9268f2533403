"""Values that are copied into an input at the end are written there at once, where nobody can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from tpfx.native.in_place import write_in_place

aten = torch.ops.aten


def rewritten(write: Callable[..., Any]) -> list[str]:
    """What becomes of a graph of `cache, at, new`: `write(call, *inputs)` gives its results."""
    graph = Graph()
    inputs = [graph.placeholder(name) for name in ("cache", "at", "new")]

    def call(op: Any, *args: Any) -> Node:
        return graph.call_function(op, args)

    graph.output(tuple(write(call, *inputs)))
    write_in_place(graph)
    graph.lint()
    return [f"{node} {node.target} {node.args}" for node in graph.nodes if node.op != "placeholder"]


def test_a_cache_is_written_into() -> None:
    def write(call: Any, cache: Node, at: Node, new: Node) -> list[Node]:
        value = call(aten.index_copy.default, cache, 2, at, new)
        read = call(aten.sum.default, call(aten.transpose.int, value, 0, 1))
        return [read, call(aten.copy_.default, cache, value)]

    assert rewritten(write) == [
        "index_copy_default aten.index_copy_.default (cache, 2, at, new)",
        "transpose_int aten.transpose.int (index_copy_default, 0, 1)",
        "sum_default aten.sum.default (transpose_int,)",
        "output output ((sum_default, index_copy_default),)",
    ]


def test_not_where_the_old_value_is_used_or_the_new_one_returned() -> None:
    def old(call: Any, cache: Node, at: Node, new: Node) -> list[Node]:
        value = call(aten.index_copy.default, cache, 2, at, new)
        call(aten.copy_.default, cache, value)
        return [call(aten.sum.default, cache)]

    def returned(call: Any, cache: Node, at: Node, new: Node) -> list[Node]:
        value = call(aten.index_copy.default, cache, 2, at, new)
        call(aten.copy_.default, cache, value)
        return [call(aten.reshape.default, value, [-1])]

    def made_of_another(call: Any, cache: Node, at: Node, new: Node) -> list[Node]:
        value = call(aten.index_copy.default, new, 2, at, new)
        return [call(aten.copy_.default, cache, value)]

    def itself(call: Any, cache: Node, at: Node, new: Node) -> list[Node]:
        value = call(aten.index_copy.default, cache, 2, at, call(aten.neg.default, cache))
        return [call(aten.copy_.default, cache, value)]

    for write in (old, returned, made_of_another, itself):
        assert any("aten.copy_.default" in line for line in rewritten(write)), write.__name__
