"""Verification finds the faults planted in the graphs of ranks, names the node, and finds nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from tests.support.models import inputs, tiny
from tests.support.nets import Branches
from tests.support.random_nets import Drawing
from tpfx.dump.text import names_of
from tpfx.ir.nodes import copy_graph
from tpfx.ir.parallel_graph import ParallelGraph
from tpfx.ir.provenance import origin_of
from tpfx.kernels.collectives import broadcast_random, gather_shards
from tpfx.kernels.lookups import embedding_shard
from tpfx.planning.topology import Topology
from tpfx.runtime.mesh import Mesh
from tpfx.runtime.thread_runtime import Runtime
from tpfx.verify import model as verify_model
from tpfx.verify.compare_runs import Replayed, verify_graphs
from tpfx.verify.findings import Finding
from tpfx.verify.model import verify

aten, c10d = torch.ops.aten, torch.ops._c10d_functional
REDUCE = (c10d.all_reduce.default, c10d.all_reduce_.default)
Fault = Callable[[Graph, Node], None]


@dataclass
class Case:
    """A graph, and what it takes to verify it again with faults."""

    captured: GraphModule
    parallel: ParallelGraph
    modules: Sequence[GraphModule]
    args: Sequence[Any]
    mesh: Mesh

    def name(self, node: str) -> str:
        """The name that the dump has for a node."""
        return names_of(self.parallel)[next(one for one in self.parallel.graph.nodes if one.name == node)]

    def tampered(self, find: Sequence[Any], name: str, fault: Fault, *ranks: int) -> list[Finding]:
        """What is found where these ranks (or all) have a fault in what they call for a node of the dump."""
        modules = [copy_graph(module) for module in self.modules]
        for rank in ranks or range(len(modules)):
            graph = modules[rank].graph
            known = [node for node in graph.nodes if node.target in find]
            (node,) = (node for node in known if self.name(str(origin_of(node))) == name)
            fault(graph, node)
            graph.lint()
        return self.again(modules).findings

    def again(self, modules: Sequence[GraphModule]) -> Replayed:
        """Verify these graphs of the ranks."""
        runtime = Runtime(self.mesh, timeout=5.0)
        try:
            with torch.no_grad():
                return verify_graphs(self.captured, self.parallel, modules, self.args, runtime)
        finally:
            runtime.close()


def case_of(model: nn.Module, given: Any, **options: Any) -> Case:
    """The one graph of a model."""
    made: list[Case] = []

    def record(
        captured: GraphModule, parallel: ParallelGraph, modules: Any, args: Any, runtime: Runtime
    ) -> Replayed:
        made.append(Case(captured, parallel, modules, args, runtime.mesh))
        return verify_graphs(captured, parallel, modules, args, runtime)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_model, "verify_graphs", record)
        assert verify(model, 2, given, **options).right
    (one,) = made
    return one


@pytest.fixture(scope="module")
def llama() -> Case:
    model = tiny("llama", num_hidden_layers=1)
    return case_of(model, inputs(model))


@pytest.fixture(scope="module")
def branches() -> Case:
    torch.manual_seed(0)
    return case_of(Branches(), (torch.randn(3, 64),))


# Faults. Each takes the node of a rank's graph that shall be wrong.


def dropped(graph: Graph, node: Node) -> None:
    """The partial sum goes on in the place of the sum."""
    (wait,) = node.users
    wait.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    graph.erase_node(wait)
    graph.erase_node(node)


def bypassed(graph: Graph, node: Node) -> None:
    """The sum is made, and not used: the partial sum goes on, as it was."""
    (wait,) = node.users
    node.target = c10d.all_reduce.default
    wait.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]


def doubled(graph: Graph, node: Node) -> None:
    """The sum is summed again."""
    (wait,) = node.users
    with graph.inserting_after(wait):
        again = graph.call_function(c10d.all_reduce.default, (wait, *node.args[1:]))
    with graph.inserting_after(again):
        waited = graph.call_function(c10d.wait_tensor.default, (again,))
    wait.replace_all_uses_with(waited, delete_user_cb=lambda user: user is not again)


def shifted(position: int, by: int) -> Fault:
    """An argument, or both ends of the one interval that it is, is another number."""

    def fault(graph: Graph, node: Node) -> None:
        args: list[Any] = list(node.args)
        given = args[position]
        args[position] = given + by if isinstance(given, int) else tuple((a + by, b + by) for a, b in given)
        node.args = tuple(args)

    return fault


def both(*faults: Fault) -> Fault:
    """One fault after the other, at one node."""

    def fault(graph: Graph, node: Node) -> None:
        for one in faults:
            one(graph, node)

    return fault


def swapped(graph: Graph, node: Node) -> None:
    """A sum, with all that it needs, is made after the one that should follow it."""
    others = [other for other in graph.nodes if other.target in REDUCE]
    other = others[others.index(node) + 1]
    (wait,) = node.users
    place = next(iter(other.users))
    for moved in (node, wait):
        place.append(moved)
        place = moved
    for user in list(wait.users):
        if user < wait:
            place.append(user)
            place = user


def test_a_dropped_all_reduce(llama: Case) -> None:
    found = llama.tampered(REDUCE, "layers.0.self_attn.o_proj.sum", dropped)
    assert (found[0].kind, found[0].node, found[0].ranks) == (
        "collective",
        "layers.0.self_attn.o_proj.sum",
        (0, 1),
    )
    assert found[0].text == "its all_reduce is missing"
    assert found[0].module == "model.layers.0.self_attn.o_proj"
    assert "modeling_llama.py:" in found[0].source


def test_an_all_reduce_dropped_on_one_rank_does_not_hang(llama: Case) -> None:
    found = llama.tampered(REDUCE, "layers.0.mlp.down_proj.sum", dropped, 1)
    assert (found[0].kind, found[0].node, found[0].ranks) == (
        "collective",
        "layers.0.mlp.down_proj.sum",
        (1,),
    )


def test_a_sum_that_is_not_used(llama: Case) -> None:
    found = llama.tampered(REDUCE, "layers.0.self_attn.o_proj.sum", bypassed)
    assert (found[0].kind, found[0].ranks) == ("operand", (0, 1))
    assert "takes layers.0.self_attn.o_proj, partial sums that are not summed" in found[0].text


def test_results_in_each_others_places(llama: Case) -> None:
    modules = [copy_graph(module) for module in llama.modules]
    output = modules[0].graph.output_node()
    first, *others = output.args[0]  # type: ignore[misc]
    output.args = ([*others, first],)
    found = llama.again(modules).findings
    assert [(one.kind, one.node, one.ranks) for one in found] == [("operand", "the results", (0,))] * 3
    assert "result 0 is" in found[0].text


def test_a_double_all_reduce(llama: Case) -> None:
    found = llama.tampered(REDUCE, "layers.0.self_attn.o_proj.sum", doubled)
    assert (found[0].kind, found[0].node) == ("collective", "layers.0.self_attn.o_proj.sum")
    assert "the sum is summed again" in found[0].text


def test_a_wrong_slice(llama: Case) -> None:
    slices = [node for node in llama.parallel.graph.nodes if node.target is aten.slice.Tensor]
    name = llama.name(slices[0].name)
    found = llama.tampered([aten.slice.Tensor], name, both(shifted(2, 1), shifted(3, 1)), 1)
    assert [(one.kind, one.node, one.ranks) for one in found] == [("value", name, (1,))]
    found = llama.tampered([aten.slice.Tensor], name, shifted(3, -1), 0)
    assert [(one.kind, one.node, one.ranks) for one in found] == [("shape", name, (0,))]


def test_a_wrong_index_offset(llama: Case) -> None:
    found = llama.tampered([embedding_shard], "embed_tokens", shifted(2, -1), 1)
    assert [(one.kind, one.node) for one in found] == [("value", "embed_tokens")]
    assert "the ranks' partial sums do not give it" in found[0].text


def test_a_gather_of_other_shards() -> None:
    """On one rank: it would put the shards together in another way than the others."""
    model = nn.Sequential(nn.Linear(64, 256), nn.Softmax(-1), nn.Linear(256, 64))
    slow = case_of(model, (torch.randn(3, 64),), topology=Topology(bandwidth=1e7))
    (node,) = (node for node in slow.modules[1].graph.nodes if node.target is gather_shards)

    def mixed(graph: Graph, node: Node) -> None:
        ((dim, (first, second)),) = node.args[1]  # type: ignore[misc]
        node.args = (node.args[0], ((dim, (second, first)),), *node.args[2:])

    name = slow.name(str(origin_of(node)))
    found = slow.tampered([gather_shards], name, mixed, 1)
    assert [(one.kind, one.node, one.ranks) for one in found] == [("collective", name, (1,))]


def test_swapped_collectives_on_one_rank(branches: Case) -> None:
    found = branches.tampered(REDUCE, "left.sum", swapped, 1)
    assert [(one.kind, one.node, one.ranks) for one in found] == [("collective", "left.sum", (1,))]
    assert found[0].text == "its all_reduce comes after that of right.sum"


def test_another_reduction(branches: Case) -> None:
    def greatest(graph: Graph, node: Node) -> None:
        node.args = (node.args[0], "max", *node.args[2:])

    found = branches.tampered(REDUCE, "left.sum", greatest, 0, 1)
    assert [(one.kind, one.node, one.ranks) for one in found] == [("collective", "left.sum", (0, 1))]
    assert found[0].text == "all_reduce of max where sum is planned"


def test_a_rank_that_draws_by_itself_in_a_branch() -> None:
    case = case_of(Drawing("branch"), (torch.randn(6, 8),))
    modules = [copy.deepcopy(module) for module in case.modules]
    inner = [one for one in modules[1].modules() if isinstance(one, GraphModule) and one is not modules[1]]
    drawing = [node for one in inner for node in one.graph.nodes if node.target is broadcast_random]
    for node in drawing:
        node.target, node.args = node.args[2], node.args[3]
    for one in inner:
        one.recompile()
    found = case.again(modules).findings
    assert [(one.kind, one.ranks) for one in found] == [("draw", (1,))] * len(drawing)
    assert "draws by aten.native_dropout.default for this rank alone" in found[0].text


def test_a_rank_that_raises(branches: Case) -> None:
    """What no check sees beforehand: what an op does with values."""

    def checked(graph: Graph, node: Node) -> None:
        with graph.inserting_before(node):
            flag = graph.call_function(aten.lt.Scalar, (node.args[0], -1e9))
            graph.call_function(
                aten._assert_async.msg, (graph.call_function(aten.all.default, (flag,)), "no")
            )

    found = branches.tampered([aten.sin.default], "sin", checked, 0)
    assert [(one.kind, one.ranks) for one in found] == [("error", (0,))]
    assert "no" in found[0].text
