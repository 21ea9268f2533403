"""A rank's graph as bytes, for another process.

text = dumps(module)
module = loads(text)        # the same nodes, in a process that has the same ops and functions

torch's own way of pickling a graph module traces its code anew, which changes the graph.
"""

from __future__ import annotations

import importlib
import io
import operator
import pickle
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate, map_arg

from ..errors import ModelError
from ..torch_internals.fx import HigherOrderOperator, LazyGraphModule, OpOverload, module_of

REMEDY = "have workers import it, from a module instead of the main program, or leave out processes=True"


class _Place:
    """Stands for a node, by its number."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Pickler(pickle.Pickler):
    """Writes ops by their names."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, OpOverload):
            return _op_named, (value.name(), _module_to_import(value))
        if isinstance(value, HigherOrderOperator):
            return _higher_order_named, (value.name(),)
        if isinstance(value, GraphModule):
            return _module_of, _described(value)
        if getattr(value, "__module__", None) == "__main__" and callable(value):
            raise _refused(str(getattr(value, "__qualname__", value)))
        return NotImplemented


def dumps(module: GraphModule) -> bytes:
    """A graph module as bytes.

    Raises:
        ModelError: it calls what another process cannot find.
    """
    file = io.BytesIO()
    try:
        _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(module)
    except (pickle.PicklingError, AttributeError, TypeError) as problem:
        raise ModelError(f"a graph cannot be handed to another process ({problem}): {REMEDY}") from problem
    return file.getvalue()


def loads(text: bytes) -> GraphModule:
    """The graph module that `dumps` has written.

    Raises:
        ModelError: this process does not have what it calls.
    """
    try:
        made: GraphModule = pickle.loads(text)
    except (AttributeError, ImportError) as problem:
        raise ModelError(
            f"a graph calls what the process of a rank does not have ({problem}): {REMEDY}"
        ) from problem
    return made


def _described(module: GraphModule) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """What a graph refers to by name, and its nodes: kind, name, target, arguments."""
    places: dict[Node, Any] = {node: _Place(at) for at, node in enumerate(module.graph.nodes)}
    names = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    constants = {name: operator.attrgetter(name)(module) for name in sorted(names)}
    nodes = [
        (node.op, node.name, node.target, *map_arg((node.args, node.kwargs), places.__getitem__))
        for node in module.graph.nodes
    ]
    return constants, nodes


def _module_of(constants: dict[str, Any], nodes: Sequence[tuple[Any, ...]]) -> GraphModule:
    graph = Graph()
    made: list[Node] = []

    def node_at(value: Any) -> Any:
        return made[value.number] if isinstance(value, _Place) else value

    for op, name, target, args, kwargs in nodes:
        args, kwargs = map_aggregate((args, kwargs), node_at)
        made.append(graph.create_node(op, target, args, kwargs, name))
    module: GraphModule = LazyGraphModule(constants, graph)
    return module


def _refused(what: str) -> ModelError:
    return ModelError(f"a graph calls {what} of the main program, which workers do not run: {REMEDY}")


def _module_to_import(op: OpOverload) -> str | None:
    """What has to be imported for an op to be there, if that is known to be anything."""
    module = module_of(op)
    if module == "__main__":
        raise _refused(op.name())
    return module


def _op_named(name: str, module: str | None) -> OpOverload:
    """An op by its name, `aten::add.Tensor`."""
    if module is not None:
        importlib.import_module(module)
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    found: OpOverload = getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")
    return found


def _higher_order_named(name: str) -> Any:
    """An op that calls graphs."""
    return getattr(torch.ops.higher_order, name)
