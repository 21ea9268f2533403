"""What the ops of a graph take adds up to what the plan says of it."""

import pytest

from tests.support.drawn import CASES
from tpfx.ir.resharding import COLLECTIVES
from tpfx.plan.estimate import Run


@pytest.mark.parametrize("name", CASES)
def test_ops_add_up_to_the_estimate(sheets, name):
    sheet = sheets(name)
    for at, (graph, parallel) in enumerate(zip(sheet.plan.graphs, sheet.parallels, strict=True)):
        run, ranks, loads = graph.estimate, range(parallel.ranks), sheet.loads(at)
        found = [(node, loads.of(node)) for node in parallel.graph.nodes]
        kept = [sum(load.kept[rank] for _, load in found if load.kept) for rank in ranks]
        assert kept == run.kept
        assert max(load.alive[0] for _, load in found) == run.activations[sheet.fullest(at)]
        sent = [load.seconds for node, load in found if node.target in COLLECTIVES]
        assert {len(seconds) for seconds in sent} == {1}
        taken = [load.seconds for node, load in found if load.seconds and node.target not in COLLECTIVES]
        seconds = [sum(each[min(rank, len(each) - 1)] for each in taken) for rank in ranks]
        assert max(seconds) == pytest.approx(run.compute)
        gathers = [one.bytes for one in parallel.collectives() if one.kind == "gather"]
        sizes = Run(parallel.graph, parallel.ranks, sheet.plan.topology)
        gathered = sum(sizes.sent("gather", size) for size in gathers)
        assert sum(seconds for (seconds,) in sent) + gathered == pytest.approx(run.messages)


def test_of_some_ops_the_most_that_lives_and_what_is_left(sheets):
    sheet = sheets("llama, 2 devices, decode")
    nodes = list(sheet.parallels[0].graph.nodes)
    loads = sheet.loads(0)
    most, left = loads.alive(nodes)
    assert most == sheet.plan.graphs[0].estimate.activations[0]
    assert left == loads.of(nodes[-1]).alive[1]
    assert loads.alive([]) == (0, 0)
