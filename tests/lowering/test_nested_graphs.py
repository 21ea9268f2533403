"""Graphs that a rank's ops call: what draws is told by rank 0, devices are the rank's own."""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule

from tpfx.kernels.collectives import broadcast_again, broadcast_and_keep, broadcast_random
from tpfx.lowering.nested_graphs import broadcast_of, place, rank_copy

aten, higher_order = torch.ops.aten, torch.ops.higher_order


def drawing() -> GraphModule:
    """A graph that calls a graph that draws."""
    inner, outer, root = Graph(), Graph(), torch.nn.Module()
    x = inner.placeholder("x")
    inner.output(inner.call_function(aten.rand_like.default, (x,)))
    root.branch = GraphModule(root, inner)
    x, branch = outer.placeholder("x"), outer.get_attr("branch")
    outer.output(outer.call_function(higher_order.cond, (True, branch, branch, (x,))))
    return GraphModule(root, outer)


def test_a_copy_draws_for_all_however_deep() -> None:
    module = drawing()
    made = rank_copy(module, False, "tp", torch.device("cpu"))
    (call,) = [node for node in made.branch.graph.nodes if node.op == "call_function"]
    assert (call.target, call.args[:3]) == (broadcast_random, (False, "tp", aten.rand_like.default))
    assert any(node.target is aten.rand_like.default for node in module.branch.graph.nodes)


def test_states_are_kept_and_taken() -> None:
    graph, op = Graph(), aten.native_dropout.default
    kept = graph.call_function(higher_order.run_and_save_rng_state, (op, 1, 0.5, True))
    again = graph.call_function(higher_order.run_with_rng_state, (kept, op, 1, 0.5, True))
    assert broadcast_of(kept, True, "tp") == (broadcast_and_keep, (True, "tp", op, (1, 0.5, True), {}))
    assert broadcast_of(again, True, "tp") == (broadcast_again, (True, "tp", kept, op, (1, 0.5, True), {}))


def test_what_is_made_on_a_gpu_is_made_on_the_ranks_own() -> None:
    graph, first, own = Graph(), torch.device("cuda", 0), torch.device("cuda", 1)
    graph.call_function(aten.ones.default, ([3],), {"device": first})
    graph.call_function(broadcast_random, (True, "tp", aten.rand.default, ([3],), {"device": first}))
    graph.call_function(aten.ones.default, ([3],), {"device": torch.device("cpu")})
    place(graph, own)
    ones, drawn, host = graph.nodes
    assert (ones.kwargs["device"], drawn.args[4]["device"], host.kwargs["device"].type) == (own, own, "cpu")
