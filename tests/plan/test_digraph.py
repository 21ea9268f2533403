"""The parallel graph as networkx has it: its vertices, its edges, and what is known of them."""

from __future__ import annotations

import networkx
import torch
from torch import Tensor, nn
from torch.fx import Node

from tests.support.nets import Mlp
from tpfx.capture.capture import capture
from tpfx.ir.layout import Partial, Replicate, Split
from tpfx.ir.parallel_graph import ParallelGraph
from tpfx.plan.digraph import digraph
from tpfx.plan.offline import plan_graphs


def planned(model: nn.Module, phase: str = "prefill") -> ParallelGraph:
    (captured,) = capture(model, (torch.zeros(8, 64),), phase=phase, symbolic=False)
    (parallel,) = plan_graphs([captured], 2)
    return parallel


def test_vertices_in_the_order_of_the_graph_and_what_they_are() -> None:
    parallel = planned(Mlp())
    graph = digraph(parallel)
    assert list(graph) == list(parallel.graph.nodes)
    inside, result = 8 * 256 * 4, 8 * 64 * 4
    weight = 256 * 64 * 4
    assert [
        (found["op"], type(found["layout"]), found["bytes"], found["module"], found["collective"])
        for _, found in graph.nodes(data=True)
    ] == [
        ("input", Split, weight, "", None),
        ("input", Replicate, result, "", None),
        ("input", Split, weight, "", None),
        ("linear", Split, inside, "up", None),
        ("relu", Split, inside, "", None),
        ("linear", Partial, result, "down", None),
        ("all_reduce", Replicate, result, "down", "all_reduce"),
        ("results", type(None), 0, "", None),
    ]


def test_edges_run_from_operands_to_users_in_order() -> None:
    parallel = planned(Mlp())
    graph = digraph(parallel)
    for node in parallel.graph.nodes:
        assert list(graph.predecessors(node)) == node.all_input_nodes
        assert set(graph.successors(node)) == set(node.users)
    assert networkx.is_directed_acyclic_graph(graph)
    assert {found["collective"] for _, _, found in graph.edges(data=True)} == {None}


def test_what_is_gathered_for_the_caller_is_on_the_edge_to_the_output() -> None:
    parallel = planned(nn.Linear(64, 256, bias=False))
    graph, output = digraph(parallel), parallel.graph.output_node()
    ((operand, _, found),) = graph.in_edges(output, data=True)
    assert found == {"collective": "gather", "bytes": 8 * 256 * 4}
    (collective,) = parallel.collectives()
    assert (collective.kind, collective.bytes, collective.node) == ("gather", found["bytes"], operand.name)


def test_collectives_and_phases_are_those_of_the_plan() -> None:
    class Loss(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.relu(self.up(x)) @ self.up.weight).sum()

    parallel = planned(Loss(), "train")
    graph = digraph(parallel)
    found = {
        (node.name, one["collective"], one["bytes"], one["phase"])
        for node, one in graph.nodes(data=True)
        if one["collective"]
    }
    collectives = [one for one in parallel.collectives() if one.kind != "gather"]
    names: dict[Node, str] = {node: node.name for node in graph}
    values = {name: next(iter(graph.predecessors(node))).name for node, name in names.items() if node.args}
    assert {(values[name], kind, size, phase) for name, kind, size, phase in found} == {
        (one.node, one.kind, one.bytes, one.phase) for one in collectives
    }
    assert {phase for *_, phase in found} == {"forward", "backward"}
