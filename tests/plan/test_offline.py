"""Planning offline: graphs in order, weights pinned by the first that uses them, backward parted."""

from __future__ import annotations

import re
import resource
from collections import Counter

import pytest
import torch
import transformers
from torch import nn

import tpfx
from tests.support.models import inputs, tiny
from tpfx.capture.capture import capture
from tpfx.dump.text import dump_text
from tpfx.ir.annotations import gradients_in
from tpfx.plan.explain import Explainer
from tpfx.plan.offline import Planner, plan_graphs, plan_offline

EXAMPLE = (torch.zeros(8, 64),)


class Twice(nn.Module):
    """Two graphs that use one weight, the second by its other dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x @ self.weight
        torch._dynamo.graph_break()
        return torch.relu(x) @ self.weight.T


def mlps(count: int) -> nn.Sequential:
    """So many pairs of layers, the first of a pair divided by columns and the second by rows."""
    torch.manual_seed(0)
    layers = [part for _ in range(count) for part in (nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))]
    return nn.Sequential(*layers)


def weight_line(text: str) -> str:
    """What a dump says of the weight."""
    (line,) = (line for line in text.splitlines() if line.startswith("weight "))
    return line.partition("  # ")[0]


def test_a_weight_keeps_the_layout_of_the_first_graph_that_uses_it() -> None:
    first, second = map(dump_text, plan_graphs(capture(Twice(), EXAMPLE, symbolic=False), 2))
    assert weight_line(first) == weight_line(second) == "weight  f32[64, 64/2]"
    assert "# column, split n" in first
    assert "# row, split k" in second


def test_alone_the_second_graph_would_divide_the_weight_otherwise() -> None:
    _, second = capture(Twice(), EXAMPLE, symbolic=False)
    second.kept = {}
    (alone,) = plan_graphs([second], 2)
    assert weight_line(dump_text(alone)) == "weight  f32[64/2, 64]"


def test_a_planner_pins_weights_and_nothing_else() -> None:
    planner = Planner(2)
    for graph in capture(mlps(1), EXAMPLE):
        planner.plan(graph)
    split = {name: [dim for dim, _ in shards.dims] for name, shards in planner.pinned.items()}
    assert split == {"0.weight": [0], "0.bias": [0], "2.weight": [1], "2.bias": []}


def test_captured_graphs_stay_as_they_are() -> None:
    captured = capture(mlps(1), EXAMPLE, phase="train")
    before = [(str(one.module.graph), list(one.sources)) for one in captured]
    plans = [[dump_text(plan) for plan in plan_graphs(captured, devices)] for devices in (2, 3, 2)]
    assert [(str(one.module.graph), one.sources) for one in captured] == before
    assert plans[0] == plans[2] != plans[1]


def test_what_is_backward_is_known_after_the_partition() -> None:
    model = mlps(2)
    (captured,) = capture(model, EXAMPLE, phase="train")
    (plan,) = plan_graphs([captured], 2)
    output = plan.graph.output_node()
    returned = output.args[0]
    assert isinstance(returned, (tuple, list))
    gradients = {returned[at].name for at in gradients_in(output)}
    assert gradients <= plan.backward
    assert returned[0].name not in plan.backward
    tangents = [node.name for node in plan.graph.find_nodes(op="placeholder") if "tangents" in node.name]
    assert set(tangents) <= plan.backward
    phases = [one.phase for one in plan.collectives() if one.kind == "all_reduce"]
    assert phases == ["forward", "forward", "backward"]  # rows of both pairs; columns of the second
    (inference,) = plan_graphs(capture(model, EXAMPLE), 2)
    assert inference.backward == frozenset()


def test_what_one_graph_keeps_for_another_stays_divided() -> None:
    model = tiny("llama", num_hidden_layers=1)
    prefill, decode = capture(model, inputs(model), phase="decode")
    _, step = plan_graphs([prefill, decode], 2)
    inputs_of_step = dump_text(step).split("\n\n")[1]
    assert len(re.findall(r"f32\[\S+, 2/2, \S+, 16\]", inputs_of_step)) == 2  # keys and values, by heads
    assert [source.kind for source in decode.sources].count("state") == 0, "which is for the plan to say"


def test_the_plan_without_weights_is_the_plan_of_compile() -> None:
    model = tiny("llama", num_hidden_layers=1)
    offline = dump_text(plan_offline(model, 2, inputs(model)))
    compiled = tpfx.compile(model, ["cpu", "cpu"], example_inputs=inputs(model))
    assert tpfx.report(compiled).dump() == offline


def test_an_explanation_of_training_is_of_the_graph_that_is_planned() -> None:
    (captured,) = capture(mlps(2), EXAMPLE, phase="train")
    (plan,) = plan_graphs([captured], 2)
    chosen = Explainer(captured, plan).explain("0.weight").ways[0]
    assert chosen.chosen
    assert chosen.cost == pytest.approx(plan.solution.cost)
    assert chosen.collectives == Counter(one.kind for one in plan.collectives())


def test_fewer_than_one_device_is_refused() -> None:
    with pytest.raises(tpfx.InputError, match="cannot split a model over 0 devices; name at least 1"):
        Planner(0)
    with pytest.raises(tpfx.InputError, match="over 0 devices"):
        plan_offline(mlps(1), 0, EXAMPLE)
    for devices in (0, []):
        with pytest.raises(tpfx.InputError, match="over 0 devices"):
            tpfx.plan(mlps(1), devices, EXAMPLE)


def test_a_large_model_is_planned_without_its_weights() -> None:
    """Four layers of Llama-8B, 3.8 GiB of weights and logits tables, on the meta device."""
    config = transformers.LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=4,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = plan_offline(model, 8, symbolic=False)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < size / 8, f"planning took {grown} bytes for {size} bytes of weights"
    # Two all-reduces a layer, one for the embedding; the logits are gathered for the caller.
    kinds = [one.kind for one in plan.collectives()]
    assert (kinds.count("all_reduce"), kinds.count("gather"), len(kinds)) == (9, 1, 10)
    assert "f32" not in dump_text(plan).partition("# layers.0")[0].partition("rotary_emb.inv_freq")[0]
