"""What tells one graph from another: its ops, their arguments and its weights, but no sizes that vary.

fingerprint(graph)        # '4f0c…': the same in every process, for every batch and length left open
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import sympy
import torch
from torch.fx import Graph, Node

from .annotations import gradients_in, source_of
from .nodes import hint_of, result_tensors, size_of


def fingerprint(graph: Graph) -> str:
    """A digest of a graph whose inputs have sources; 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for line in _lines(graph):
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()[:32]


def circumstances(graph: Graph) -> str:
    """A digest of what else choosing goes by: sizes that vary as they are now, where inputs lie, what the
    results are gradients of; 32 hexadecimal digits."""
    digest = hashlib.sha256()
    numbers: dict[Node, int] = {}
    for node in graph.nodes:
        numbers[node] = len(numbers)
        sizes = [
            hint_of(size) for value in result_tensors(node) for size in value.shape if type(size) is not int
        ]
        if node.op == "placeholder":
            digest.update(f"{numbers[node]} {source_of(node).pinned}\n".encode())
        if sizes:
            digest.update(f"{numbers[node]} {sizes}\n".encode())
    gradients = {at: numbers[node] for at, node in sorted(gradients_in(graph.output_node()).items())}
    digest.update(str(gradients).encode())
    return digest.hexdigest()[:32]


def _lines(graph: Graph) -> Iterator[str]:
    numbers: dict[Node, int] = {}
    sizes = _Sizes()
    for node in graph.nodes:
        yield f"{_what(node)}{_arguments(node, numbers)} {_types(node.meta.get('val'), sizes)}"
        numbers[node] = len(numbers)


def _what(node: Node) -> str:
    """What a node does; its own name says nothing, but a weight's does."""
    if node.op != "placeholder":
        target: Any = node.target
        named = isinstance(target, FunctionType)  # as text it has an address, another one in each process
        return (
            "output"
            if node.op == "output"
            else f"{target.__module__}.{target.__name__}"
            if named
            else str(target)
        )
    source = source_of(node)
    name = source.name if source.is_weight else ""
    return f"{source.kind} {name} {source.mutated}"


def _arguments(node: Node, numbers: dict[Node, int]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, Node):
            return f"%{numbers[value]}"
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(text, value))}]"
        if isinstance(value, torch.device):
            return value.type  # each process may have another one of them
        return str(value)

    named = (f"{name}={text(value)}" for name, value in sorted(node.kwargs.items()))
    return f"({', '.join((*map(text, node.args), *named))})" if node.op != "placeholder" else ""


def _types(value: Any, sizes: _Sizes) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_types(item, sizes) for item in value)
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}[{', '.join(map(sizes, value.shape))}]"
    return sizes(value) if isinstance(value, torch.SymInt) else type(value).__name__


class _Sizes:
    """Sizes as text, with their symbols numbered in the order in which they occur."""

    def __init__(self) -> None:
        self._symbols: dict[sympy.Symbol, sympy.Symbol] = {}
        self._known: dict[sympy.Expr, str] = {}

    def __call__(self, extent: Any) -> str:
        size = size_of(extent)
        if isinstance(size, int):
            return str(size)
        text = self._known.get(size)
        if text is None:
            for symbol in sorted(size.free_symbols, key=str):
                number = len(self._symbols)
                self._symbols.setdefault(symbol, sympy.Symbol(f"s{number}", integer=True, positive=True))
            text = self._known[size] = str(size.xreplace(self._symbols))
        return text
