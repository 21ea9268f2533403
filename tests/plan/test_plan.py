"""Plans as files: what they say, that `compile` follows them, and that others are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.models import inputs, tiny
from tpfx.errors import PlanError
from tpfx.passes import pipeline
from tpfx.plan.plan import Plan


def test_a_plan_survives_its_file(plans: dict[int, Plan], tmp_path: Any) -> None:
    for plan in plans.values():
        plan.save(tmp_path / "plan.json")
        again = Plan.load(tmp_path / "plan.json")
        assert again == plan
        assert again.to_json() == plan.to_json()
        assert str(again) == str(plan)


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
    own = dict(tiny("llama").dummy_inputs)
    plan = tpfx.plan(tiny("llama"), 2, own)
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
            tpfx.compile(model, ["cpu", "cpu"], plan=wrong, example_inputs=own)
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
