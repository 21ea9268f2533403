"""Memory and time that a run is expected to take, against numbers that follow from the model's sizes."""

from __future__ import annotations

from typing import Any

import torch

import tpfx
from tests.support.models import inputs
from tests.support.nets import Mlp
from tpfx.plan.plan import Plan
from tpfx.planning.topology import Topology

LAYERS, HEADS, KV_HEADS, WIDTH = 2, 4, 2, 16


def test_what_it_says_of_memory_and_collectives(model: Any, plans: dict[int, Plan]) -> None:
    plan = plans[2]
    total = sum(value.nbytes for value in (*model.parameters(), *model.buffers()))
    assert plan.total_bytes == total
    assert sum(plan.bytes_per_device) >= total
    assert max(plan.bytes_per_device) <= 1.05 / 2 * total
    prefill, decode = plan.graphs
    assert [graph.phase for graph in plan.graphs] == ["prefill", "decode"]
    batch, length = inputs(model)["input_ids"].shape
    cache = 2 * LAYERS * batch * KV_HEADS * WIDTH * 4  # keys and values of one token, float32
    assert sum(prefill.estimate.kept) == length * cache
    assert sum(decode.estimate.kept) == (length + 1) * cache
    assert prefill.estimate.tokens == batch * length
    assert decode.estimate.tokens == batch
    for graph in plan.graphs:
        kinds = [one.kind for one in graph.collectives]
        assert kinds == ["all_reduce"] * (2 * LAYERS + 1) + ["gather"]
        assert graph.optimal
        assert 0 < graph.estimate.messages < graph.estimate.seconds
    assert plans[1].graphs[0].collectives == []
    assert plans[1].graphs[0].estimate.messages == 0


def test_the_peak_is_that_of_a_graph_counted_by_hand() -> None:
    """x → up (4 rows of 128, half on each rank) → relu → down, a partial sum → its sum: two at once."""
    plan = tpfx.plan(Mlp(128), 2, (torch.zeros(4, 64),))
    (graph,) = plan.graphs
    half_hidden = result = 4 * 64 * 4
    assert graph.estimate.activations == [half_hidden + result] * 2
    assert graph.estimate.kept == [0, 0]


def test_the_time_is_that_of_a_graph_counted_by_hand() -> None:
    """Uneven: of 128 columns, rank 0 has 43, and takes longest."""
    slow = Topology(latency=1.0, bandwidth=10.0, flops=1e30, memory=100.0, launch=1000.0)
    (graph,) = tpfx.plan(Mlp(128), 3, (torch.zeros(4, 64),), topology=slow).graphs
    x, weight, hidden = 4 * 64 * 4, 43 * 64 * 4, 4 * 43 * 4
    assert graph.estimate.compute == 3 * 1000 + (2 * (x + weight + hidden) + 2 * hidden) / 100
    assert graph.estimate.messages == 1 + 2 * 2 / 3 * x / 10
    assert graph.estimate.seconds == graph.estimate.compute + graph.estimate.messages


def test_arithmetic_counts_where_it_takes_longer_than_memory() -> None:
    slow = Topology(flops=1.0, memory=1e9, launch=1e-9)
    (graph,) = tpfx.plan(Mlp(128), 2, (torch.zeros(4, 64),), topology=slow).graphs
    assert round(graph.estimate.compute) == 2 * 2 * 4 * 64 * 128 / 2  # the products of both layers


def test_views_take_no_time_and_no_memory() -> None:
    class Viewed(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.view(2, 2, 64))

    given = (torch.zeros(4, 64),)
    (plain,), (viewed,) = (tpfx.plan(model, 2, given).graphs for model in (Mlp(128), Viewed(128)))
    assert len(viewed.ops) > len(plain.ops)
    assert viewed.estimate.compute == plain.estimate.compute
    assert viewed.estimate.activations == plain.estimate.activations
