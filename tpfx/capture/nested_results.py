"""Results of a graph that other results of it are computed from, as autograd sees them.

nesting = note_nesting(module)       # one of Dynamo's graphs, which returns (head(h), h)
nesting.within                       # {0: (1,)}, once it has been traced: result 0 is computed from 1
module, leaves = cut_at(module, [1], [])     # the same graph, with the second result as another input

In the unsharded model the gradient of such a result comes from the others, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

Within = Mapping[int, tuple[int, ...]]

_NAME = "_tpfx_nesting"


class Nesting(torch.nn.Module):
    """Sees the results of a graph each time it is traced, with autograd's nodes.

    Attributes:
        within: for each result that is computed from others, from which, none of them between; the same
            tensor as an earlier one is computed from that alone.
        same: which results are the same tensor as an earlier one.
    """

    within: Within
    same: Mapping[int, int]

    def __init__(self) -> None:
        super().__init__()
        self.within, self.same = {}, {}

    def forward(self, *results: Any) -> None:
        """Note what these results are computed from."""
        edges: dict[tuple[Any, int], int] = {}
        same = {}
        for at, result in enumerate(results):
            if isinstance(result, torch.Tensor) and result.grad_fn is not None:
                first = edges.setdefault((result.grad_fn, result.output_nr), at)
                if first != at:
                    same[at] = first
        found = {at: tuple(sorted(_nearest(node, edges))) for (node, _), at in edges.items()}
        self.within, self.same = {at: nearest for at, nearest in found.items() if nearest}, same

    __call__ = forward  # hooks of all modules are none of its


def _nearest(node: Any, edges: Mapping[tuple[Any, int], int]) -> set[int]:
    """The results that one of autograd's nodes leads to, but those behind others."""
    found, seen, waiting = set(), {node}, [node]
    while waiting:
        for before, which in waiting.pop().next_functions:
            if (before, which) in edges:
                found.add(edges[before, which])
            elif before is not None and before not in seen:
                seen.add(before)
                waiting.append(before)
    return found


def note_nesting(module: GraphModule) -> Nesting:
    """Have the results of one of Dynamo's graphs seen when it is traced."""
    nesting, graph = Nesting(), module.graph
    results = graph.output_node().args[0]
    if isinstance(results, (list, tuple)) and sum(isinstance(one, Node) for one in results) > 1:
        module.add_module(_NAME, nesting)
        with graph.inserting_before(graph.output_node()):
            graph.call_module(_NAME, tuple(results))
        module.recompile()
    return nesting


def cut_at(module: GraphModule, given: Sequence[int], computed: Sequence[int]) -> GraphModule:
    """A graph whose results are computed from some of them as if those were no results of it.

    Args:
        module: one of Dynamo's graphs.
        given: the results that it takes as further inputs.
        computed: those that it computes itself.

    Returns:
        A graph that returns the results, and those which stand for the computed ones.
    """
    graph, made = Graph(), dict[Node, Node]()
    results: Sequence[Any] = graph.graph_copy(module.graph, made)  # type: ignore[assignment]
    for node in graph.find_nodes(op="call_module", target=_NAME):
        graph.erase_node(node)
    for at in given:
        with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
            _use_instead(results[at], graph.placeholder(f"given_{at}"))
    leaves = []
    for at in computed:
        with graph.inserting_after(results[at]):
            leaves.append(graph.call_function(_leaf, (results[at],)))
        _use_instead(results[at], leaves[-1])
    graph.output((tuple(results), tuple(leaves)))
    return GraphModule(module, graph)


def _use_instead(node: Node, other: Node) -> None:
    node.replace_all_uses_with(other, lambda user: user is not other)


def _leaf(value: torch.Tensor) -> torch.Tensor:
    return value.detach().requires_grad_()
