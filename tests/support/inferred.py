"""Graphs of functions, as the chooser gets them: normalised, simplified, with axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from tpfx.ir.annotations import Source, bound_of, set_source
from tpfx.passes.infer_axes import infer_axes
from tpfx.passes.normalize import normalize
from tpfx.passes.simplify import simplify


def inferred(function: Callable[..., Any], weights: dict[str, torch.Tensor], *given: torch.Tensor) -> Graph:
    """The graph of `function(weights, *given)`, whose inputs are those weights, then `given`."""
    graph = make_fx(function, tracing_mode="fake")(weights, *given).graph
    sources = [Source("parameter", name) for name in weights]
    sources += [Source("input", f"x{at}") for at in range(len(given))]
    for node, source in zip(graph.find_nodes(op="placeholder"), sources, strict=True):
        set_source(node, source)
    normalize(graph)
    simplify(graph)
    infer_axes(graph)
    return graph


def calls(graph: Graph, name: str) -> list[Node]:
    """The calls of an op, by a part of its name."""
    return [node for node in graph.nodes if bound_of(node) is not None and name in str(node.target)]
