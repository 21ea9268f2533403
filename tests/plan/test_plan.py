"""Plans as files: what they say, that `compile` follows them, and that others are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.models import inputs, tiny
from tpfx.capture.capture import capture
from tpfx.errors import InputError, PlanError
from tpfx.passes import pipeline
from tpfx.plan.diff import differences
from tpfx.plan.explain import Explainer
from tpfx.plan.make import describe
from tpfx.plan.offline import plan_graphs
from tpfx.plan.plan import Plan
from tpfx.plan.tables import comparison
from tpfx.planning.topology import TOPOLOGIES, Topology, topology_of

LAYERS, HEADS, KV_HEADS, WIDTH = 2, 4, 2, 16


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama")


@pytest.fixture(scope="module")
def captured(model: Any) -> Any:
    return capture(model, inputs(model), phase="decode")


@pytest.fixture(scope="module")
def plans(model: Any, captured: Any) -> dict[int, Plan]:
    return {n: describe(model, captured, plan_graphs(captured, n), Topology()) for n in (1, 2, 3)}


def test_a_plan_survives_its_file(plans: dict[int, Plan], tmp_path: Any) -> None:
    for plan in plans.values():
        plan.save(tmp_path / "plan.json")
        again = Plan.load(tmp_path / "plan.json")
        assert again == plan
        assert again.to_json() == plan.to_json()
        assert str(again) == str(plan)


def test_what_it_says_of_memory_and_messages(model: Any, plans: dict[int, Plan]) -> None:
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
        kinds = [message.kind for message in graph.collectives]
        assert kinds == ["all_reduce"] * (2 * LAYERS + 1) + ["gather"]
        assert graph.optimal
        assert 0 < graph.estimate.messages < graph.estimate.seconds
    assert plans[1].graphs[0].collectives == []
    assert plans[1].graphs[0].estimate.messages == 0


def test_the_peak_is_that_of_a_graph_counted_by_hand() -> None:
    """x → up (4 rows of 128, half on each rank) → relu → down, an addend → its sum: two at once."""

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(64, 128, bias=False), nn.Linear(128, 64, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(torch.relu(self.up(x)))

    plan = tpfx.plan(Mlp(), 2, (torch.zeros(4, 64),))
    (graph,) = plan.graphs
    half_hidden = result = 4 * 64 * 4
    assert graph.estimate.activations == [half_hidden + result] * 2
    assert graph.estimate.kept == [0, 0]


def test_compile_follows_a_plan_without_choosing(monkeypatch: Any, tmp_path: Any) -> None:
    plain = tiny("llama")
    given = inputs(plain)
    chosen = tpfx.report(tpfx.compile(tiny("llama"), ["cpu"] * 3, example_inputs=given))
    plan = tpfx.plan(plain, 3, given)
    plan.save(tmp_path / "plan.json")

    def never(*_: Any) -> None:
        raise AssertionError("the plan says it")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "choose", never)
        model = tpfx.compile(tiny("llama"), 3, example_inputs=given, plan=tmp_path / "plan.json")
        with torch.no_grad():
            torch.testing.assert_close(model(**given).logits, plain(**given).logits, rtol=1e-4, atol=1e-4)
    report = tpfx.report(model)
    assert report.dump() == chosen.dump()
    assert report.planned
    assert "(proven cheapest, from the plan)" in str(report)
    assert report.bytes_per_device == chosen.bytes_per_device == plan.bytes_per_device
    assert (report.cost, report.optimal) == (chosen.cost, chosen.optimal)
    # A graph that the plan does not have is chosen around the weights as they lie.
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**given, **options), plain.generate(**given, **options))
    assert tpfx.report(model).bytes_per_device == plan.bytes_per_device
    assert tpfx.report(model).planned is False
    assert "(proven cheapest, not in the plan)" in str(tpfx.report(model))


def _other(plan: Plan, **changes: Any) -> Plan:
    return replace(plan, **changes)


def test_a_plan_for_something_else_is_refused(plans: dict[int, Plan]) -> None:
    plan = plans[2]
    wider = tiny("llama", intermediate_size=192)
    deeper = tiny("llama", num_hidden_layers=3)
    cases = [
        (tiny("llama"), 3, plan, "is for 2 devices, not for 3"),
        (wider, 2, plan, r"gate_proj.weight is float32 \[128, 64\], here it is float32 \[192, 64\]"),
        (deeper, 2, plan, "the plan has no model.layers.2"),
        (tiny("gpt2"), 2, plan, "another model, LlamaForCausalLM: GPT2LMHeadModel has no model.embed_tokens"),
        (tiny("llama"), 2, _other(plan, tpfx="0.0.1"), "made by tpfx 0.0.1, this is"),
    ]
    for model, devices, given, message in cases:
        before = dict(model.named_parameters())
        with pytest.raises(PlanError, match=message):
            tpfx.compile(model, ["cpu"] * devices, plan=given)
        assert all(value is before[name] for name, value in model.named_parameters())


def test_choices_of_another_graph_are_refused(plans: dict[int, Plan]) -> None:
    plan = tpfx.plan(tiny("llama"), 2)
    (graph,) = plan.graphs
    for ops, units, message in (
        (graph.ops[1:], graph.units, "decides .* ops of a graph that has"),
        ([replace(graph.ops[0], choice="row"), *graph.ops[1:]], graph.units, "cannot be read: 'row'"),
        (graph.ops, {**graph.units, 999: [1, 1]}, "divides split 999"),
    ):
        wrong = replace(plan, graphs=[replace(graph, ops=ops, units=units)])
        model = tiny("llama")
        before = {name: value.clone() for name, value in model.named_parameters()}
        with pytest.raises(PlanError, match=message):
            tpfx.compile(model, ["cpu", "cpu"], plan=wrong, example_inputs=dict(model.dummy_inputs))
        for name, value in model.named_parameters():
            assert type(value) is nn.Parameter
            assert torch.equal(value, before[name])


BROKEN = {
    "nothing": ("", "it is not JSON"),
    "a list": ("[]", "its schema is None, not 1"),
    "another schema": ('{"schema": 2}', "its schema is 2, not 1"),
    "a part missing": ('{"schema": 1, "model": "x", "devices": 2}', "missing or wrong: KeyError: 'weights'"),
    "a part wrong": (
        '{"schema": 1, "model": "x", "devices": "two", "weights": {}, "graphs": [], "topology": {}}',
        "missing or wrong: ValueError",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(name: str, tmp_path: Any) -> None:
    text, message = BROKEN[name]
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError, match=message):
        tpfx.compile(nn.Linear(2, 2), ["cpu"], plan=path)
    with pytest.raises(PlanError, match="cannot read the plan"):
        Plan.load(tmp_path / "none.json")


def test_two_plans_differ_in_what_is_said(plans: dict[int, Plan]) -> None:
    assert list(differences(plans[2], plans[2])) == []
    lines = list(differences(plans[2], plans[3]))
    assert "devices: 2 → 3" in lines
    assert any(
        line.startswith("model.embed_tokens.weight: float32[256, 64] split, dimension 0") for line in lines
    )
    one = replace(plans[2], weights={}, graphs=plans[2].graphs[:1])
    lines = list(differences(plans[2], one))
    assert "graph 1 (decode): only in the first" in lines
    assert "model.norm.weight: float32[64] whole → not there" in lines


def test_numbers_of_devices_side_by_side(plans: dict[int, Plan]) -> None:
    text = comparison(list(plans.values()))
    assert "1 device " in text
    assert "3 devices" in text
    for graph in plans[3].graphs:
        assert f"{graph.phase}: kept for later calls" in text


def test_the_chosen_way_is_the_cheapest(model: Any, captured: Any) -> None:
    parallel = plan_graphs(captured, 2)[0]
    explainer = Explainer(captured[0], parallel)
    for name in ("layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight", "layers.0.add"):
        told = explainer.explain(name)
        assert told.ways[0].chosen
        assert [way.chosen for way in told.ways].count(True) == 1
        assert told.ways[0].cost == pytest.approx(parallel.solution.cost)
        assert told.ways[0].messages == {"all_reduce": 2 * LAYERS + 1, "gather": 1}
        assert len(told.ways) > 1
    (message,) = explainer.explain("layers.0.self_attn.o_proj").forced
    assert message == "all_reduce (6 KiB) for layers.0.add: its other operands are no addends"
    assert "(chosen)" in str(told)
    with pytest.raises(InputError, match=r"no op layers\.0\.ad; did you mean layers\.0\.add"):
        explainer.explain("layers.0.ad")


def test_topologies_are_read_and_refused(tmp_path: Any) -> None:
    path = tmp_path / "here.json"
    TOPOLOGIES["pcie4"].save(path)
    assert topology_of(str(path)) == TOPOLOGIES["pcie4"]
    assert topology_of("default") == Topology()
    for text, message in (
        ("{", "cannot read the topology"),
        ('{"speed": 1}', "is no topology: it is an object with latency"),
        ('{"latency": 0}', "latency is 0; it must be a number above 0"),
        (json.dumps({"flops": "many"}), "flops is 'many'"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            topology_of(str(path))
    with pytest.raises(InputError, match="dgx is no topology that tpfx knows"):
        topology_of("dgx")
