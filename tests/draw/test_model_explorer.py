"""Plans for Model Explorer."""

import json

import pytest

from tests.support.drawn import CASES
from tpfx.draw.model_explorer import model_explorer
from tpfx.formatting import seconds_text
from tpfx.plan.critical_path import critical_path, timed


@pytest.mark.parametrize("name", CASES)
def test_model_explorer_has_every_edge(plans, name):
    plan, parallels = plans(name)
    found = model_explorer(plan, parallels)
    assert json.loads(json.dumps(found)) == found
    for graph, parallel in zip(found["graphs"], parallels, strict=True):
        ids = [node["id"] for node in graph["nodes"]]
        assert len(ids) == len(set(ids)) == len(parallel.graph.nodes)
        edges = [edge["sourceNodeId"] for node in graph["nodes"] for edge in node["incomingEdges"]]
        assert len(edges) == sum(len(node.all_input_nodes) for node in parallel.graph.nodes)
        assert set(edges) <= set(ids)


def test_an_op_says_how_long_it_takes_and_whether_it_is_on_the_critical_path(plans):
    plan, parallels = plans("gpt2, 3 devices")
    (drawn,), (parallel,) = model_explorer(plan, parallels)["graphs"], parallels
    graph = timed(parallel, plan.topology)
    path = critical_path(graph)
    said = {
        node["id"]: {one["key"]: one["value"] for one in node.get("attrs", [])} for node in drawn["nodes"]
    }
    for node, found in graph.nodes(data=True):
        if found["seconds"]:
            assert said[node.name]["time, predicted"] == seconds_text(found["seconds"])
        on_path = bool(found["seconds"]) and node in path.nodes
        assert ("critical path" in said[node.name]) == on_path
    assert any("critical path" in one for one in said.values())
