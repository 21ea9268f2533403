"""What tells one graph from another, in every process alike."""

from __future__ import annotations

from types import FunctionType

import torch
from torch.fx import Graph

from tpfx.ir.annotations import Source, set_source
from tpfx.ir.fingerprint import fingerprint


def _graph(function: object) -> Graph:
    graph = Graph()
    x = graph.placeholder("x")
    set_source(x, Source("input", "x"))
    graph.output((graph.call_function(function, ([1, x],)),))  # type: ignore[arg-type]
    return graph


def test_a_function_of_python_is_known_by_its_name() -> None:
    """And not by where it lies, which is another place in each process."""
    ours = torch.sym_sum
    assert isinstance(ours, FunctionType)
    again = FunctionType(ours.__code__, ours.__globals__, ours.__name__)
    again.__module__ = ours.__module__
    assert again is not ours
    assert fingerprint(_graph(ours)) == fingerprint(_graph(again)) != fingerprint(_graph(torch.sym_max))


def test_which_gpu_it_is_does_not_matter() -> None:
    """Each process has its own, and all must find that they have the same graph."""

    def made_on(device: str) -> str:
        graph = Graph()
        ones = torch.ops.aten.ones.default
        graph.output((graph.call_function(ones, ([2],), {"device": torch.device(device)}),))
        return fingerprint(graph)

    assert made_on("cuda:0") == made_on("cuda:1") != made_on("cpu")
