"""The rule that was bound to a call is the one that it is lowered and shown by."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.fx import Graph

from tpfx.dump.text import dump_text
from tpfx.ir.annotations import bound_of, set_dims
from tpfx.ir.axes import Dim
from tpfx.ir.parallel_graph import ParallelGraph
from tpfx.passes.localize import localize
from tpfx.passes.pipeline import _whole_ops
from tpfx.plan.offline import plan_offline
from tpfx.rules.bind import bind, rule_of
from tpfx.rules.rule import Rule
from tpfx.rules.table import TABLE, rule_for
from tpfx.rules.whole_dims import unsplit

aten = torch.ops.aten


@pytest.fixture
def restored() -> Iterator[None]:
    """The table as it was, whatever a test does to it."""
    before = dict(TABLE)
    yield
    TABLE.clear()
    TABLE.update(before)


class Packed(nn.Module):
    """A packed projection: its split, its views and its mean have arguments that differ from rank to rank."""

    def __init__(self) -> None:
        super().__init__()
        self.packed, self.down = nn.Linear(32, 192, bias=False), nn.Linear(64, 32, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up, more = self.packed(x).split(64, -1)
        heads = (gate * up + more).view(2, 4, 16).relu()
        return self.down(heads.reshape(2, 64)) + heads.mean((1, 2)).unsqueeze(1)


def shown(parallel: ParallelGraph) -> list[str]:
    """Everything that is made of a planned graph."""
    ranks = [str(localize(parallel.graph, rank, 2, "group", rank == 0)) for rank in range(2)]
    return [*ranks, dump_text(parallel), str(_whole_ops(parallel.graph))]


@pytest.mark.parametrize("change", ["forgotten", "replaced"])
def test_rules_that_change_after_planning_change_nothing(change: str, restored: None) -> None:
    parallel = plan_offline(Packed(), 2, (torch.zeros(2, 32),), symbolic=False)
    before = shown(parallel)
    assert "[32, 32, 32]" in before[0] and "[2, 2, 16]" in before[0], "the arguments are this rank's"
    TABLE.update(dict.fromkeys(TABLE, Rule(unsplit))) if change == "replaced" else TABLE.clear()
    assert shown(parallel) == before


def test_what_is_not_bound_yet_has_the_rule_of_the_table() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(2, 3, device="meta")
    set_dims(x, [Dim(2), Dim(3)])
    node = graph.call_function(aten.t.default, (x,))
    node.meta["val"] = torch.empty(3, 2, device="meta")
    assert rule_of(node) is rule_for(aten.t.default)
    bound = bind(node, None)
    assert rule_of(node) is None and bound_of(node) is bound
    assert bound.whole == [*bound.results[0], *bound.operands[0]], "without a rule nothing is split"
