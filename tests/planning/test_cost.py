"""What ops, collectives and resident bytes cost, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.nn import functional as F

from tests.support.inferred import calls, inferred
from tests.support.models import inputs, tiny
from tests.support.nets import Mlp
from tpfx.capture.capture import capture
from tpfx.ir.annotations import Choice, bound_of, choice_of, dims_of
from tpfx.ir.layout import Partial, Replicate, Split
from tpfx.ir.nodes import bytes_of
from tpfx.ir.splits import Splits
from tpfx.passes.choose import Problem
from tpfx.plan.estimate import Run
from tpfx.plan.offline import plan_graphs
from tpfx.planning.choices import options
from tpfx.planning.cost import CostModel, CostWeights, Work
from tpfx.planning.topology import Topology

RANKS = 4
SLOW = Topology(latency=1.0, bandwidth=10.0, flops=1000.0, memory=100.0, launch=0.25)
TOKENS, INSIDE, OUTSIDE = 3, 8, 16


def product() -> Graph:
    """x [3, 8] by a weight [16, 8], float32."""
    return inferred(
        lambda weights, x: F.linear(x, weights["w"]),
        {"w": torch.zeros(OUTSIDE, INSIDE)},
        torch.zeros(TOKENS, INSIDE),
    )


def ways(graph: Graph, op: str, ranks: int = RANKS) -> dict[str, Choice]:
    """The choices of the one call of an op: whole, or by what the first result is then."""
    (node,) = calls(graph, op)
    found = options(node, Splits(graph, ranks), frozenset())
    return {c.kind if c.kind == "whole" else type(c.results[0]).__name__: c for c in found}


def test_a_product_whole_and_split_in_columns_or_rows() -> None:
    graph = product()
    (node,) = calls(graph, "linear")
    choices, cost = ways(graph, "linear"), CostModel(graph, RANKS, SLOW)
    flops = 2 * TOKENS * OUTSIDE * INSIDE
    x, w, y = 4 * TOKENS * INSIDE, 4 * OUTSIDE * INSIDE, 4 * TOKENS * OUTSIDE
    assert cost.work(node, choices["whole"]) == Work(flops, x + w + y)
    assert cost.work(node, choices["Split"]) == Work(flops / 4, x + w / 4 + y / 4)  # column parallel
    assert cost.work(node, choices["Partial"]) == Work(flops / 4, x / 4 + w / 4 + y)  # row parallel
    assert cost.op_price(node, choices["whole"]) == (x + w + y) / SLOW.memory
    busy = CostModel(graph, RANKS, Topology(flops=1.0, memory=1e6))
    assert busy.op_price(node, choices["Split"]) == flops / 4


def test_a_rank_does_its_own_part_and_the_most_loaded_one_counts_before() -> None:
    graph = product()
    (node,) = calls(graph, "linear")
    choice, cost = ways(graph, "linear", 3)["Split"], CostModel(graph, 3, SLOW)
    before = cost.work(node, choice)
    (split,) = {layout for layout in choice.results if isinstance(layout, Split)}
    split.divide([5, 6, 5])
    done = [cost.work(node, choice, rank) for rank in range(3)]
    assert [work.flops for work in done] == [2 * TOKENS * units * INSIDE for units in (5, 6, 5)]
    assert done[1] == before == Work(2 * TOKENS * 6 * INSIDE, 4 * (24 + 6 * INSIDE + TOKENS * 6))


def test_attention_is_the_bytes_that_it_moves() -> None:
    """Its kernel's products are inside heads and never divided; the rule has nothing contracted."""
    heads, queries, width = 4, 8, 16
    values = {name: torch.zeros(1, heads, queries, width) for name in "qkv"}
    graph = inferred(lambda w: F.scaled_dot_product_attention(w["q"], w["k"], w["v"]), values)
    (node,) = calls(graph, "attention")
    by_heads = next(c for c in options(node, Splits(graph, RANKS), frozenset()) if c.kind == "split")
    cost = CostModel(graph, RANKS, SLOW)
    moved = 4 * (4 * heads * queries * width + heads * queries)  # q, k, v, the result, and log-sum-exp
    assert cost.work(node, Choice("whole", (Replicate(),) * 3, (Replicate(),) * 2)) == Work(0, moved)
    assert cost.work(node, by_heads) == Work(0, moved / 4)
    assert cost.op_price(node, by_heads) == cost.weights.fused * (moved / 4 / SLOW.memory)


def test_a_lookup_multiplies_nothing_and_is_priced_by_its_rows() -> None:
    rows, width, tokens = 32, 8, 2
    graph = inferred(
        lambda weights, ids: F.embedding(ids, weights["table"]),
        {"table": torch.zeros(rows, width)},
        torch.zeros(tokens, dtype=torch.int64),
    )
    (node,) = calls(graph, "embedding")
    choices = ways(graph, "embedding")
    cost = CostModel(graph, RANKS, Topology(flops=1.0, memory=1e6))
    assert cost.work(node, choices["whole"]) == Work(0, 4 * rows * width + 8 * tokens + 4 * tokens * width)
    assert cost.op_price(node, choices["whole"]) == cost.weights.fused * 2 * tokens * width * rows
    assert cost.op_price(node, choices["Partial"]) == cost.op_price(node, choices["whole"]) / 4


def test_several_sums_at_once_and_gradients_of_which_each_sums_over_what_it_lacks() -> None:
    graph = inferred(
        lambda weights, x: torch.ops.aten.convolution_backward(
            x.new_zeros(2, 6, 5), x, weights["w"], None, [1], [0], [1], False, [0], 1, [True, True, False]
        )[:2],
        {"w": torch.zeros(6, 3, 4)},
        torch.zeros(2, 3, 8),
    )
    (node,) = calls(graph, "convolution_backward")
    whole = options(node, Splits(graph, RANKS), frozenset())[0]
    of_input, of_weight = 2 * (2 * 3 * 8) * 6, 2 * (6 * 3 * 4) * 2  # over what leaves; over the batch
    assert CostModel(graph, RANKS, SLOW).work(node, whole).flops == of_input + of_weight


def test_an_op_that_carries_a_partial_sum_on_costs_a_little_more() -> None:
    graph = inferred(lambda weights, x: (x @ weights["w"]) * 2, {"w": torch.zeros(8, 8)}, torch.zeros(3, 8))
    (node,) = calls(graph, "mul")
    choices = {c.kind: c for c in options(node, Splits(graph, RANKS), frozenset(node.all_input_nodes))}
    cost = CostModel(graph, RANKS, SLOW)
    more = cost.op_price(node, choices["pending"]) - cost.op_price(node, choices["whole"])
    assert more == pytest.approx(cost.weights.carried)


def test_collectives() -> None:
    graph = product()
    cost = CostModel(graph, RANKS, SLOW)
    assert cost.collective("all_reduce", 40) == 1 + 2 * 3 / 4 * 40 / 10
    assert cost.collective("gather", 40) == 1 + 3 / 4 * 40 / 10
    placed = 2 * 40 / 100 + RANKS * 0.25  # each shard is copied to its place
    assert cost.collective("all_gather", 40) == 1 + 3 / 4 * 40 / 10 + placed
    with pytest.raises(KeyError):
        cost.collective("broadcast", 40)


def test_a_value_is_made_whole_by_a_sum_or_a_gather_and_what_it_adds_is_priced() -> None:
    graph = product()
    (node,), choices = calls(graph, "linear"), ways(graph, "linear")
    weight = graph.find_nodes(op="placeholder")[0]
    cost = CostModel(graph, RANKS, SLOW)
    size = 4 * TOKENS * OUTSIDE
    assert cost.whole(node, Partial("sum")) == cost.collective("all_reduce", size)
    split = choices["Split"].results[0]
    gathered = cost.collective("all_gather", size)
    assert cost.whole(node, split) == gathered + cost.weights.gathered * cost.price * size * 3 / 4
    size = bytes_of(weight.meta["val"])
    dearer = cost.weights.gathered_weight * cost.collective("all_gather", size)
    assert cost.whole(weight, split) == dearer + cost.weights.gathered * cost.price * size * 3 / 4


def test_resident_bytes_are_priced_by_the_largest_all_reduce() -> None:
    graph = inferred(
        lambda weights, x: F.linear(x, weights["w"]) * weights["scale"],
        {"w": torch.zeros(OUTSIDE, INSIDE), "scale": torch.zeros(1)},
        torch.zeros(TOKENS, INSIDE),
    )
    cost = CostModel(graph, RANKS, SLOW)
    weight, scale, _ = graph.find_nodes(op="placeholder")
    largest = cost.collective("all_reduce", 4 * TOKENS * OUTSIDE)
    assert cost.price == 3 * largest / (4 * OUTSIDE * INSIDE)
    assert cost.resident(weight, Replicate()) == pytest.approx(3 * largest)
    split = next(iter(Splits(graph, RANKS).of([dims_of(weight)])))
    assert cost.resident(weight, split) == pytest.approx(3 * largest / 4)
    assert cost.resident(scale, Replicate()) == pytest.approx(0.01 * 4 * cost.price)  # small
    twice = CostModel(graph, RANKS, SLOW, CostWeights(price=6.0))
    assert twice.price == 2 * cost.price


@pytest.mark.parametrize(("packed", "least"), [(torch.int8, 16 * 64), (torch.float32, 4 * 16)])
def test_scales_beside_quantized_numbers_set_no_price(packed: torch.dtype, least: int) -> None:
    """Others do, such as the lengths beside a normalised weight."""
    graph = inferred(
        lambda weights, x: F.linear(x, weights["up.qdata"].float() * weights["up.scale"]),
        {"up.qdata": torch.zeros(16, 64, dtype=packed), "up.scale": torch.zeros(16, 1)},
        torch.zeros(TOKENS, 64),
    )
    cost = CostModel(graph, RANKS, SLOW)
    assert cost.price == 3 * cost.collective("all_reduce", 4 * TOKENS * 16) / least


def test_what_is_small_has_few_elements_beside_the_smallest_matrix() -> None:
    graph = inferred(
        lambda weights, x: F.linear(x * weights["norm"], weights["up.qdata"].float()),
        {"norm": torch.zeros(64), "up.qdata": torch.zeros(16, 64, dtype=torch.int8)},
        torch.zeros(TOKENS, 64),
    )
    norm, cost = graph.find_nodes(op="placeholder")[0], CostModel(graph, RANKS, SLOW)
    assert cost.resident(norm, Replicate()) == pytest.approx(0.01 * 4 * 64 * cost.price)


def test_a_unit_that_a_group_of_ranks_shares_is_nearly_free_to_hold_again() -> None:
    """2 heads of keys for 8 of queries on 4 ranks: pairs of ranks hold one."""
    values = {"q": torch.zeros(1, 8, 2, 4), "k": torch.zeros(1, 2, 2, 4), "v": torch.zeros(1, 2, 2, 4)}
    graph = inferred(
        lambda w: F.scaled_dot_product_attention(w["q"], w["k"], w["v"], enable_gqa=True), values
    )
    keys = graph.find_nodes(op="placeholder")[1]
    cost, splits = CostModel(graph, RANKS, SLOW), Splits(graph, RANKS).of([dims_of(keys)])
    alone, grouped = (next(s for s in splits if len(s.axes) == count) for count in (1, 2))
    whole = cost.resident(keys, Replicate())
    assert cost.resident(keys, alone) == whole / 2
    assert cost.resident(keys, grouped) == whole * (1 / 4 + cost.weights.grouped * (1 / 2 - 1 / 4))


@pytest.mark.parametrize("grouped", [False, True])
def test_what_the_fullest_rank_holds_beyond_the_average_counts_a_quarter(grouped: bool) -> None:
    """4 groups of channels on 3 ranks are 2 + 1 + 1; 2 groups are held by 2 ranks and by 1."""
    groups = 2 if grouped else 4
    graph = inferred(
        lambda w, x: F.conv_transpose1d(x, w["w"], groups=groups),
        {"w": torch.zeros(8, 16, 3)},
        torch.zeros(2, 8, 6),
    )
    weight = graph.find_nodes(op="placeholder")[0]
    cost, splits = CostModel(graph, 3, SLOW), Splits(graph, 3).of([dims_of(weight)])
    split = next(one for one in splits if int(one.axes[0].size) == groups and len(one.axes) == 1 + grouped)
    whole = cost.resident(weight, Replicate())
    assert cost.resident(weight, split) == pytest.approx(whole * (1 / 3 + (1 / 2 - 1 / 3) / 4))


def test_a_size_that_varies_counts_as_in_the_example() -> None:
    """The gradient of a weight is summed over the rows of the batch, of which there are 24 here."""

    class Loss(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sum()

    (captured,) = capture(Loss(128), (torch.zeros(24, 64),), phase="train")
    (parallel,) = plan_graphs([captured], 2)
    run = Run(parallel.graph, parallel.ranks, Topology())
    gradients = [node for node in parallel.graph.nodes if _is_gradient(node)]
    assert run.cost.sizes.hints
    assert len(gradients) == 2
    whole = 2 * 64 * 128 * 24
    for node in gradients:
        assert run.cost.work(node, choice_of(node)).flops == whole / 2
        assert [run.cost.work(node, choice_of(node), rank).flops for rank in (0, 1)] == [whole / 2] * 2


def _is_gradient(node: Node) -> bool:
    bound = bound_of(node)
    return bound is not None and bool(bound.products()) and sorted(node.meta["val"].shape) == [64, 128]


@pytest.mark.parametrize("phase", ["prefill", "train"])
def test_choose_and_estimate_count_alike(phase: str) -> None:
    """What the chooser takes an op to do on the most loaded rank is what the slowest one does."""
    model = tiny("llama")
    given = inputs(model) | ({"labels": inputs(model)["input_ids"]} if phase == "train" else {})
    (captured,) = capture(model, given, phase=phase)
    (parallel,) = plan_graphs([captured], 2)
    problem = Problem(parallel.graph, 2, Topology(), parallel.splits)
    run = Run(parallel.graph, parallel.ranks, Topology())
    compared = 0
    for node in parallel.graph.nodes:
        if bound_of(node) is not None and choice_of(node) is not None:
            chosen = problem.cost.work(node, choice_of(node))
            ranks = [run.cost.work(node, choice_of(node), rank) for rank in (0, 1)]
            assert chosen == Work(max(w.flops for w in ranks), max(w.moved for w in ranks)), node
            compared += chosen.flops > 0
    assert compared >= 15
