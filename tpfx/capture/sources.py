"""The inputs of captured graphs: what they are, and those that are made of other tensors, taken apart.

    input_sources(module, values, weight_sources(model))    # weights by name, inputs of a call
    compiled = on_leaves(module, example_inputs, compile)   # compile(module, values) has the tensors inside
    compiled(*args)                                         # takes what Dynamo's graph does

Quantized weights, such as torchao's, are of subclasses whose tensors are made of others. The graph takes
those, and puts them together again, by the subclass's own `__tensor_unflatten__`, before the first op that
uses one. AOTAutograd then traces what the subclass makes of it: ops on the tensors inside. So each of them is
an input, with axes of its own, and nothing here knows any subclass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..errors import ModelError, TpfxError
from ..ir.annotations import Source
from ..ir.nodes import is_mutable
from ..torch_internals.dynamo import as_of_dynamo, note_source_inside
from ..torch_internals.parameter_slots import slots_of, tensors_inside

_JOINT = "tensors_of_"  # what the modules are called that put tensors together


def weight_sources(model: torch.nn.Module) -> dict[int, Source]:
    """What each parameter and buffer of a model is, by its id; tied ones have their first name."""
    sources: dict[int, Source] = {}
    for slot in slots_of(model):
        sources.setdefault(id(slot.value), Source(slot.kind, slot.name))
    return sources


def input_sources(module: GraphModule, values: Sequence[Any], weights: Mapping[int, Source]) -> list[Source]:
    """What each input of one of Dynamo's graphs is, where weights are known by the ids of their tensors."""
    placeholders = module.graph.find_nodes(op="placeholder")
    return [
        weights.get(id(value), Source("input", node.name))
        for node, value in zip(placeholders, values, strict=True)
    ]


def settle_sources(lowered: GraphModule, sources: Sequence[Source]) -> list[Source]:
    """What the inputs of an ATen graph are: those that it writes into are state, and tangents come last.

    Raises:
        TpfxError: AOTAutograd made other inputs than Dynamo gave it.
    """
    placeholders = lowered.graph.find_nodes(op="placeholder")
    inputs = [node for node in placeholders if not is_tangent(node)]
    if len(inputs) != len(sources):
        raise TpfxError(
            f"the captured graph takes {len(inputs)} inputs where the model gave {len(sources)}: it "
            "writes to inputs that share memory (pass copies), or has an op with side effects, as linalg.inv"
        )
    mutable = (node.args[0] for node in lowered.graph.nodes if is_mutable(node))
    written = {operand for operand in mutable if isinstance(operand, Node)}
    settled = []
    for node, source in zip(inputs, sources, strict=True):
        kind = "state" if node in written and source.kind == "input" else source.kind
        settled.append(replace(source, kind=kind, mutated=node in written))
    return settled + [Source("tangent", node.name) for node in placeholders[len(inputs) :]]


def is_tangent(node: Node) -> bool:
    """Whether an input of a joint graph is the gradient of one of its results."""
    return str(node.target).startswith("tangents")


Compile = Callable[[GraphModule, Sequence[Any]], Callable[..., Any]]


def on_leaves(module: GraphModule, values: Sequence[Any], compile: Compile) -> Callable[..., Any]:
    """Compile a graph of Dynamo's that takes the tensors inside of its inputs; what is returned takes those.

    Args:
        module: the graph.
        values: its inputs.
        compile: what compiles a graph for some values; it gets these where no input is made of others.

    Raises:
        ModelError: a gradient is wanted of an input that is made of others.
    """
    paths = [list(_paths(value)) for value in values]
    if not any(paths):
        return compile(module, values)
    inputs = module.graph.find_nodes(op="placeholder")
    for node, value, inside in zip(inputs, values, paths, strict=True):
        if inside and torch.is_grad_enabled() and value.requires_grad:
            raise ModelError(
                f"a gradient of {node.name} is wanted, a {type(value).__name__}, which is made of other "
                "tensors: tpfx divides such weights where they are frozen; call requires_grad_(False) on "
                "it, or run the model under torch.no_grad()"
            )
    getters = [[attrgetter(path) for path in inside] or None for inside in paths]
    compiled = compile(_rewritten(module, inputs, paths), _leaves(values, getters))
    return partial(_call, compiled, getters)


def _call(compiled: Callable[..., Any], getters: Sequence[Any], *args: Any) -> Any:
    return compiled(*_leaves(args, getters))


class Together(torch.nn.Module):
    """What makes a tensor of a subclass of the tensors inside of it.

    Attributes:
        like: a fake one, or any other, of the same kind.
    """

    def __init__(self, like: torch.Tensor) -> None:
        super().__init__()
        names, context = like.__tensor_flatten__()  # type: ignore[attr-defined]
        self.kind, self.context, self.shape, self.strides = type(like), context, like.shape, like.stride()
        self.parts = [(name, _together(getattr(like, name))) for name in names]

    def forward(self, *leaves: torch.Tensor) -> Any:
        """The tensor, of as many as are inside, in order."""
        return self.of(iter(leaves))

    def of(self, leaves: Iterator[torch.Tensor]) -> Any:
        """The same, of the next ones."""
        inner = {name: next(leaves) if part is None else part.of(leaves) for name, part in self.parts}
        return self.kind.__tensor_unflatten__(inner, self.context, self.shape, self.strides)  # type: ignore[attr-defined]

    def same(self, other: Together) -> bool:
        """Whether both make the same of the same tensors."""
        own, its = ((one.kind, one.context, one.shape, one.strides, len(one.parts)) for one in (self, other))
        pairs = zip(self.parts, other.parts, strict=False)
        return bool(own == its) and all(
            name == its_name and (part is its_part or (part and its_part and part.same(its_part)))
            for (name, part), (its_name, its_part) in pairs
        )


def _together(value: torch.Tensor) -> Together | None:
    return Together(value) if tensors_inside(value) else None


def _paths(value: Any) -> Iterator[str]:
    """Where the tensors are inside of one: `qdata`, `scale`, or deeper, `tensor_impl.qdata`."""
    for name in tensors_inside(value):
        inner = getattr(value, name)
        deeper = [f"{name}.{path}" for path in _paths(inner)]
        yield from deeper or [name]


def _leaves(args: Sequence[Any], getters: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for arg, inside in zip(args, getters, strict=True):
        found += (arg,) if inside is None else [get(arg) for get in inside]
    return found


def _rewritten(module: GraphModule, inputs: Sequence[Node], paths: Sequence[Sequence[str]]) -> GraphModule:
    """The graph with an input for each tensor, put together right before its first use."""
    graph, made = Graph(), dict[Node, Node]()
    waiting: dict[Node, list[Node]] = {}
    for node, inside in zip(inputs, paths, strict=True):
        if inside:
            waiting[node] = [_input_inside(graph, node, path) for path in inside]
        else:
            made[node] = graph.node_copy(node)
    known: list[Together] = []
    for node in module.graph.nodes:
        if node.op != "placeholder":
            for operand in node.all_input_nodes:
                if operand not in made:
                    made[operand] = _put_together(graph, operand, waiting[operand], known)
            made[node] = graph.node_copy(node, made.__getitem__)
    rewritten = GraphModule(module, Graph())
    for at, one in enumerate(known):
        rewritten.add_submodule(f"{_JOINT}{at}", one)
    rewritten.graph = graph
    return as_of_dynamo(rewritten, module)


def _input_inside(graph: Graph, node: Node, path: str) -> Node:
    made = graph.placeholder(f"{node.target}_{path.replace('.', '_')}")
    made.meta = {**node.meta, "example_value": attrgetter(path)(node.meta["example_value"])}
    note_source_inside(made, node, path.split("."))
    return made


def _put_together(graph: Graph, node: Node, leaves: Sequence[Node], known: list[Together]) -> Node:
    like = Together(node.meta["example_value"])
    at = next((at for at, one in enumerate(known) if one.same(like)), len(known))
    if at == len(known):
        known.append(like)
    made = graph.call_module(f"{_JOINT}{at}", tuple(leaves))
    made.meta["example_value"] = node.meta["example_value"]
    return made
