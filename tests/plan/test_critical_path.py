"""The critical path: the longest chain, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.support.nets import Mlp
from tpfx.capture.capture import capture
from tpfx.ir.parallel_graph import ParallelGraph
from tpfx.plan.critical_path import critical_path, timed
from tpfx.plan.estimate import estimate
from tpfx.plan.offline import plan_graphs
from tpfx.planning.topology import Topology

# A byte takes a second each way, products nothing; each op is launched in 1000 s.
TOPOLOGY = Topology(latency=1.0, bandwidth=1.0, flops=1e30, memory=1.0, launch=1000.0)


def planned(model: nn.Module, devices: int = 2) -> ParallelGraph:
    (captured,) = capture(model, (torch.zeros(8, 64),), symbolic=False)
    (parallel,) = plan_graphs([captured], devices)
    return parallel


X, WEIGHT, HIDDEN = 8 * 64 * 4, 256 * 64 * 4, 8 * 256 * 4  # bytes


def test_a_chain_is_its_own_critical_path() -> None:
    parallel = planned(Mlp())
    path = critical_path(timed(parallel, TOPOLOGY))
    assert [node.op for node in path.nodes] == ["placeholder", *["call_function"] * 4, "output"]
    products = 2 * (1000 + X + WEIGHT / 2 + HIDDEN / 2)  # up and down
    relu, summed = 1000 + HIDDEN / 2 + HIDDEN / 2, 1 + 2 * X / 2
    assert path.seconds == products + relu + summed
    assert path.seconds == pytest.approx(estimate(parallel, TOPOLOGY).seconds)


def test_of_two_branches_the_longer_one_counts() -> None:
    class Branches(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.sigmoid(x)

    parallel = planned(Branches())
    path = critical_path(timed(parallel, TOPOLOGY))
    assert not any("sigmoid" in str(node.target) for node in path.nodes)
    beside = 1000 + 2 * X
    assert path.seconds == pytest.approx(estimate(parallel, TOPOLOGY).seconds - beside)


def test_a_gather_for_the_caller_counts() -> None:
    parallel = planned(nn.Linear(64, 256, bias=False))
    (collective,) = parallel.collectives()
    assert collective.kind == "gather"
    path = critical_path(timed(parallel, TOPOLOGY))
    assert path.seconds == 1000 + X + WEIGHT / 2 + HIDDEN / 2 + 1 + HIDDEN / 2
    assert path.nodes[-1].op == "output"


def test_a_rank_alone_sends_nothing() -> None:
    parallel = planned(Mlp(), 1)
    path = critical_path(timed(parallel, TOPOLOGY))
    assert path.seconds == 2 * (1000 + X + WEIGHT + HIDDEN) + 1000 + 2 * HIDDEN
