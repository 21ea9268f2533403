"""Names for the nodes of a graph, from the modules that they come from.

layers.0.self_attn.q_proj          the one op of a module
layers.0.input_layernorm.mul_1     the second `mul` of a module that has several ops
layers.0.mlp.down_proj.sum         the all-reduce of layers.0.mlp.down_proj
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import Node

from ..ir.annotations import source_of
from ..ir.layout import Partial
from ..ir.nodes import is_getitem
from ..ir.provenance import module_path, op_name, path_of_stack
from ..ir.resharding import all_gather, all_reduce, shard, to_partial

# What is added to the name of a value that is brought into another layout.
_SUFFIXES: dict[Any, str] = {all_reduce: "sum", all_gather: "whole", shard: "shard", to_partial: "partial"}


class Names:
    """The names of nodes, from the paths of their modules.

    Attributes:
        prefix: the modules that all others lie in, but for those directly in the root; names leave it out.

    Args:
        nodes: all of a graph, in order.
        size: a symbolic size as text.
    """

    def __init__(self, nodes: Sequence[Node], size: Callable[[Any], str]) -> None:
        self._paths = {node: module_path(node) for node in nodes}
        sources = [source_of(node) for node in nodes if node.op == "placeholder"]
        qualified = [source.name for source in sources if source.is_weight]
        self.prefix = _shared(
            {*self._paths.values(), *(name.rpartition(".")[0] for name in qualified)} - {""}
        )
        alone = Counter(
            self._paths[node] for node in nodes if node.op == "call_function" and not _is_attached(node)
        )
        parents = {parent for path in alone for parent in _parents(path)}
        self._alone = {path for path, count in alone.items() if count == 1 and path not in parents}
        self._taken: Counter[str] = Counter()
        self._names: dict[Node, str] = {}
        for node in nodes:
            if node.op != "output":
                self._names[node] = self._name(node, size)

    def __getitem__(self, node: Node) -> str:
        return self._names[node]

    def path(self, node: Node) -> str:
        """The module that a node belongs to, without the prefix."""
        return self._short(self._paths[node])

    def forward_path(self, node: Node) -> str:
        """Of a node of the backward pass, the module that it computes gradients for; empty if unknown."""
        return self._short(path_of_stack(node.meta.get("fwd_nn_module_stack")))

    def _short(self, name: str) -> str:
        return "" if f"{self.prefix}.".startswith(f"{name}.") else name.removeprefix(f"{self.prefix}.")

    def _name(self, node: Node, size: Callable[[Any], str]) -> str:
        if node.op == "placeholder":
            value = node.meta.get("val")
            return size(value) if isinstance(value, torch.SymInt) else self._unique(self._input_name(node))
        if _is_attached(node):
            return self._attached_name(node)
        path, op = self._paths[node], "constant" if node.op == "get_attr" else op_name(node)
        short = self._short(path)
        if path in self._alone and short:
            return self._unique(short)
        return self._unique(f"{short}.{op}" if short else op)

    def _attached_name(self, node: Node) -> str:
        value: Any = node.args[0]
        if is_getitem(node):
            return f"{self._names[value]}[{node.args[1]}]"
        partial: Any = next((item for item in node.args if isinstance(item, Partial)), None)
        return self._unique(f"{self._names[value]}.{partial.op if partial else _SUFFIXES[node.target]}")

    def _input_name(self, node: Node) -> str:
        source = source_of(node)
        if source.is_weight:
            return self._short(source.name)
        return re.sub(r"^l_(kwargs_|args_)?|_$", "", source.name)  # as Dynamo writes a local variable

    def _unique(self, name: str) -> str:
        count = self._taken[name]
        self._taken[name] += 1
        return self._unique(f"{name}_{count}") if count else name


def _is_attached(node: Node) -> bool:
    """Whether a node's name is that of the value that it takes or moves, with something added."""
    return is_getitem(node) or node.target in _SUFFIXES


def _shared(paths: Iterable[str]) -> str:
    """The modules that all paths of several steps begin with, such that no number comes next."""
    deep = [path.split(".") for path in sorted(paths) if "." in path]
    shared: list[str] = []
    while deep and len({path[0] for path in deep}) == 1 and not any(path[1].isdigit() for path in deep):
        shared.append(deep[0][0])
        deep = [path[1:] for path in deep if len(path) > 2]
    short = {path.removeprefix(f"{'.'.join(shared)}.") for path in paths}
    return ".".join(shared) if len(short) == len(set(paths)) else ""


def _parents(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path
