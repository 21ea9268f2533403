"""Calls of ops on dimensions given as text, and what a rule says of them as text."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph

from tpfx.ir.annotations import dims_of, set_dims
from tpfx.ir.axes import Dim, find, show
from tpfx.ir.axes_text import read
from tpfx.ir.nodes import size_of
from tpfx.ir.op_dims import Bound, Call


def call(op: Any, *texts: str, args: tuple[Any, ...] = (), result: tuple[int, ...] = ()) -> Call:
    """A call on operands of these dimensions."""
    graph, names = Graph(), dict[str, Dim]()
    nodes = []
    for index, text in enumerate(texts):
        node = graph.placeholder(f"operand{index}")
        dims = read(text, names)
        node.meta["val"] = torch.empty([int(find(dim).size) for dim in dims], device="meta")
        set_dims(node, dims)
        nodes.append(node)
    made = graph.call_function(op, (*nodes, *args))
    made.meta["val"] = torch.empty(result, device="meta")
    return Call(made, dims_of, size_of)


def text_of(bound: Bound) -> str:
    """What a rule says, `operands -> results; whole …; contracted …`."""
    names: dict[Dim, str] = {}
    shown = [" ".join(show(dims, names)) for dims in (*bound.operands, *bound.results)]
    count = len(bound.operands)
    said = f"{', '.join(shown[:count])} -> {', '.join(shown[count:])}"
    for what, dims in (("whole", bound.whole), ("contracted", bound.contracted)):
        said += f"; {what} {' '.join(show(dims, names))}" if dims else ""
    return said
