"""Graphs from a few lines of text and back, for tests of passes: text in, text out.

    graph = read('''
        x: f32[3, 4]
        w: f32[5, 4] = parameter
        y = mm(x, t(w))
        return y
    ''')
    planned(graph, through="choose")
    lines(graph)          # "linear f32[3, 5] = linear(x, w)" and so on, as `tpfx dump` writes them

An input has a type, and what it is where it is not an "input". An op is one of ATen's (`sum.dim_IntList`, or
`sum` for the overload that is meant most), `constant([1, 2])`, or `pair[0]` of several results.
"""

from __future__ import annotations

import ast
import inspect
import operator
import re
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

from tpfx.dump.node_names import Names
from tpfx.dump.text import stage_text
from tpfx.ir.annotations import Source, dims_of, set_source
from tpfx.ir.axes import Dim, show
from tpfx.ir.nodes import is_getitem, is_tensor
from tpfx.ir.parallel_graph import Solution
from tpfx.ir.provenance import op_name
from tpfx.passes.apply_plan import GraphChoices, apply_choices
from tpfx.passes.context import Context
from tpfx.passes.pipeline import BEFORE_CHOICE, PASSES, run_passes

DTYPES = {"f32": torch.float32, "f64": torch.float64, "i64": torch.int64, "b8": torch.bool}


def read(text: str, **pinned: Any) -> Graph:
    """The graph that a text says, its inputs with sources; `pinned` are shards that inputs already have."""
    reader = _Reader(pinned)
    for statement in ast.parse(inspect.cleandoc(text)).body:
        reader.statement(statement)
    reader.graph.owning_module = GraphModule(reader.root, reader.graph)
    return reader.graph


class _Reader:
    """A graph being read."""

    def __init__(self, pinned: dict[str, Any]) -> None:
        self.root, self.graph, self.fake = torch.nn.Module(), Graph(), FakeTensorMode()
        self.known: dict[str, Any] = {}
        self.pinned = pinned

    def statement(self, statement: ast.stmt) -> None:
        match statement:
            case ast.AnnAssign(ast.Name(name), kind, value):
                self.known[name] = self.input(
                    name, kind, value.id if isinstance(value, ast.Name) else "input"
                )
            case ast.Assign([ast.Name(name)], value):
                self.known[name] = self.value(value)
            case ast.Return(value):
                made = self.value(value)
                self.graph.output(tuple(made) if isinstance(made, (tuple, list)) else (made,))
            case ast.Expr(value):
                self.value(value)
            case _:
                raise ValueError(f"cannot read {ast.unparse(statement)}")

    def input(self, name: str, kind: ast.expr, source: str) -> Node:
        dtype, shape = kind.value.id, ast.literal_eval(kind.slice)
        node = self.graph.placeholder(name)
        with self.fake:
            node.meta["val"] = torch.empty(
                shape if isinstance(shape, tuple) else (shape,), dtype=DTYPES[dtype]
            )
        set_source(node, Source(source, name, self.pinned.get(name)))
        return node

    def value(self, value: ast.expr) -> Any:
        match value:
            case ast.Name(name):
                return self.known[name]
            case ast.List(items) | ast.Tuple(items):
                return [self.value(item) for item in items]
            case ast.Subscript(producer, index):
                return self.call(operator.getitem, [self.value(producer), ast.literal_eval(index)], {})
            case ast.Call(ast.Name("constant"), [given]):
                return self.constant(torch.tensor(ast.literal_eval(given)))
            case ast.Call(function, args, keywords):
                named = {keyword.arg: self.value(keyword.value) for keyword in keywords}
                return self.call(_op(ast.unparse(function)), [self.value(one) for one in args], named)
            case ast.Attribute():
                return getattr(torch, value.attr)
        return ast.literal_eval(value)

    def call(self, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Node:
        node = self.graph.call_function(target, tuple(args), kwargs)
        given, named = torch.fx.node.map_arg((tuple(args), kwargs), lambda one: one.meta["val"])
        with self.fake:
            node.meta["val"] = target(*given, **named)
        return node

    def constant(self, value: torch.Tensor) -> Node:
        name = f"constant{len(list(self.root.buffers()))}"
        self.root.register_buffer(name, value)
        node = self.graph.get_attr(name)
        with self.fake:
            node.meta["val"] = torch.empty(value.shape, dtype=value.dtype)
        return node


def _op(name: str) -> Any:
    packet_name, _, overload = name.partition(".")
    packet = getattr(torch.ops.aten, packet_name)
    return getattr(packet, overload or ("Tensor" if packet_name in _OF_TENSORS else "default"))


_OF_TENSORS = ("add", "sub", "mul", "div", "slice", "split", "index")


def planned(graph: Graph, through: str, ranks: int = 2, context: Context | None = None) -> Graph:
    """Run the passes up to one, with what must hold after each checked."""
    names = [one.name for one in PASSES]
    run_passes(PASSES[: names.index(through) + 1], graph, context or Context(ranks))
    return graph


def after(name: str, graph: Graph, ranks: int = 2) -> Graph:
    """Run one pass alone, with what must hold after it checked."""
    run_passes([one for one in PASSES if one.name == name], graph, Context(ranks))
    return graph


def parts(case: str) -> list[str]:
    """What lies between the lines `---` of a case: what is before a pass, and what is after it."""
    return inspect.cleandoc(case).split("\n---\n")


def lines(graph: Graph, inputs: bool = False) -> str:
    """The ops of a graph, and what it returns, one line each; the inputs too where asked for."""
    blocks = [block for block in stage_text(graph).split("\n\n")]
    ops = [block for block in blocks if not block.startswith("#")]
    first = [block.partition("\n")[2] for block in blocks if inputs and block.startswith("# inputs")]
    (results,) = [block.splitlines()[1:] for block in blocks if block.startswith("# results")]
    text = "\n".join([*first, *ops])
    returned = ", ".join(re.sub(r"^(\S+)[^#]*(#.*)?", r"\1 \2", result).strip() for result in results)
    return "\n".join([*(" ".join(line.split()) for line in text.splitlines()), f"return {returned}"])


def dims(graph: Graph) -> str:
    """What the dimensions of every tensor of a graph are made of, one line each."""
    names, letters = Names(list(graph.nodes), str), dict[Dim, str]()
    return "\n".join(
        f"{names[node]}: {', '.join(show(dims_of(node), letters))}" for node in graph.nodes if is_tensor(node)
    )


def calls(graph: Graph) -> str:
    """The calls of a rank's graph, and what it returns, one line each."""
    names = Names(list(graph.nodes), str)

    def text(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(text, value))}]"
        if isinstance(value, dict):
            return ", ".join(f"{name}={text(item)}" for name, item in value.items() if item is not None)
        return names[value] if isinstance(value, Node) else getattr(value, "__name__", str(value))

    def call(node: Node) -> str:
        given = ", ".join(filter(None, [*map(text, node.args), text(node.kwargs)]))
        if is_getitem(node) or node.op == "get_attr":
            return names[node]
        return f"return {given[1:-1]}" if node.op == "output" else f"{names[node]} = {op_name(node)}({given})"

    return "\n".join(call(node) for node in graph.nodes if node.op != "placeholder")


def chosen(text: str, ranks: int = 2, units: dict[int, list[int]] | None = None) -> Graph:
    """A graph, read and divided, in which a comment says what is chosen for each line: `# split * 0 -> 0`."""
    graph, context = read(text), Context(ranks)
    run_passes(PASSES[:BEFORE_CHOICE], graph, context)
    ops = re.findall(r"# *(.*->.*)", text)
    apply_choices(graph, context.considered, GraphChoices(ops, units or {}, Solution([], 0.0, 0.0, True, 0)))
    return after("divide", graph, ranks)
