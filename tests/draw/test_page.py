"""Pages and drawings of plans: they say what the plan's JSON says, alike layers are in them once."""

import json
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter

import pytest
import torch
import transformers

from tpfx.capture.capture import capture
from tpfx.cli import main
from tpfx.draw.dot import dot
from tpfx.draw.model_explorer import model_explorer
from tpfx.draw.page import contents, embedded, page
from tpfx.draw.svg import svg
from tpfx.dump.text import dump_json
from tpfx.plan.make import describe
from tpfx.plan.offline import plan_graphs
from tpfx.planning.topology import Topology

LLAMA = {
    "vocab_size": 256,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
}
GPT2 = {"vocab_size": 99, "n_embd": 60, "n_head": 4, "n_layer": 3, "n_positions": 64}


def planned(config, devices, phase="prefill"):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    ids = torch.zeros(2, 12, dtype=torch.int64)
    inputs = {"input_ids": ids} | ({"labels": ids} if phase == "train" else {})
    captured = capture(model, inputs, phase=phase)
    parallels = plan_graphs(captured, devices)
    return describe(model, captured, parallels, Topology()), parallels


CASES = {
    "llama, 2 devices, decode": (transformers.LlamaConfig(**LLAMA), 2, "decode"),
    "llama, 2 devices, train": (transformers.LlamaConfig(**LLAMA), 2, "train"),
    "gpt2, 3 devices": (transformers.GPT2Config(**GPT2), 3, "prefill"),
}


FRAMES = {
    "llama, 2 devices, decode": "layers.0–3 ×4",
    "llama, 2 devices, train": "layers.0–3 ×4, 1 of them otherwise",
    "gpt2, 3 devices": "h.1",  # of 4 heads, each layer has 2 on another device
}


@pytest.fixture(scope="module")
def plans():
    """Each case, planned once."""
    made = {}

    def plan(name):
        if name not in made:
            made[name] = planned(*CASES[name])
        return made[name]

    return plan


def filled(text, member):
    """What the page makes of a layer's text."""
    if member is None:
        return text
    return re.sub(
        r"~|⟨(\d+)⟩|§(\d+)",
        lambda found: (
            member["outside"][int(found[1])]
            if found[1]
            else member["symbols"][int(found[2])]
            if found[2]
            else member["name"]
        ),
        text,
    )


def ordered(text):
    """A type with the factors of its sizes in one order: s1*s0 as s0*s1."""
    return re.sub(r"[\w()]+(\*[\w()]+)+", lambda found: "*".join(sorted(found[0].split("*"))), text)


def leaves(items, member=None):
    """The weights and ops of a page, of every layer, with the layer that they are in."""
    for item in items:
        for one in item.get("members", []):
            yield from leaves(item["kinds"][one["kind"]]["parts"], one)
        if "parts" in item:
            yield from leaves(item["parts"], member)
        elif "kinds" not in item:
            yield item, member


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_the_plan(plans, name):
    plan, parallels = plans(name)
    found, saved = json.loads(json.dumps(contents(plan, parallels))), json.loads(plan.to_json())
    assert (found["model"], found["devices"]) == (saved["model"], saved["devices"])
    assert found["bytes_per_device"] == plan.bytes_per_device
    assert found["total_bytes"] == plan.total_bytes
    for drawn, graph in zip(found["graphs"], saved["graphs"], strict=True):
        assert (drawn["optimal"], drawn["cost"]) == (graph["optimal"], graph["cost"])
        assert graph["estimate"].items() <= drawn["estimate"].items()
        messages = graph["collectives"]
        for one in drawn["collectives"]:
            alike = [m["bytes"] for m in messages if (m["kind"], m["phase"]) == (one["kind"], one["phase"])]
            assert (one["count"], one["bytes"]) == (len(alike), sum(alike))
        assert sum(one["count"] for one in drawn["collectives"]) == len(messages)
        inside = [item["message"] for item, _ in leaves(drawn["items"]) if "message" in item]
        inside = Counter((message["kind"], message["bytes"]) for message in inside)
        assert inside == Counter((m["kind"], m["bytes"]) for m in messages if m["kind"] != "gather")


@pytest.mark.parametrize("name", CASES)
def test_every_weight_is_on_the_page_as_the_plan_has_it(plans, name):
    plan, parallels = plans(name)
    found = contents(plan, parallels)
    for graph in found["graphs"]:
        weights = {
            item["before"] + filled(item["name"], member): found["weights"][item["weight"]]
            for item, member in leaves(graph["items"])
            if "weight" in item
        } | {one["name"]: found["weights"][one["weight"]] for one in found["unused"]}
        assert weights.keys() == plan.weights.keys()
        for full, weight in weights.items():
            mine = plan.weights[full]
            assert (weight["shape"], weight["dtype"], weight["bytes"]) == (mine.shape, mine.dtype, mine.bytes)
            assert tuple(weight["shards"] or ()) == (mine.shards.dims if mine.shards else ())
        held = [sum(w["held"][rank] for w in weights.values()) for rank in range(plan.devices)]
        assert held == plan.bytes_per_device


@pytest.mark.parametrize("name", CASES)
def test_every_op_is_on_the_page_as_the_dump_has_it(plans, name):
    plan, parallels = plans(name)
    for graph, parallel in zip(contents(plan, parallels)["graphs"], parallels, strict=True):
        ops = Counter(
            (
                filled(item["name"], member),
                ordered(filled(item["type"], member)),
                filled(item["call"], member),
                item.get("source", ""),
            )
            for item, member in leaves(graph["items"])
            if "weight" not in item
        )
        lines = [line for group in dump_json(parallel)["groups"] for line in group["ops"]]
        assert ops == Counter(
            (line["name"], ordered(line["type"]), line["op"], line["source"]) for line in lines
        )


def test_alike_layers_are_in_the_page_once(plans):
    plan, parallels = plans("llama, 2 devices, decode")
    for graph in contents(plan, parallels)["graphs"]:
        (stack,) = [item for item in graph["items"] if "kinds" in item]
        assert [one["name"] for one in stack["members"]] == [f"layers.{at}" for at in range(4)]
        assert len(stack["kinds"]) == 1
    larger = planned(transformers.LlamaConfig(**{**LLAMA, "num_hidden_layers": 8}), 2, "decode")
    assert len(page(*larger)) < 1.05 * len(page(plan, parallels))


def test_the_backward_pass_goes_back_through_the_layers(plans):
    (graph,) = contents(*plans("llama, 2 devices, train"))["graphs"]
    forward, backward = [item for item in graph["items"] if "kinds" in item]
    names = [one["name"] for one in forward["members"]]
    assert [one["name"] for one in backward["members"]] == names[::-1]
    assert all(item["backward"] for item, _ in leaves([backward]))


def test_layers_of_two_kinds_are_one_stack():
    """Remainders alternate: of 3 key and value heads, 2 devices have 2 and 1, then 1 and 2."""
    config = {**LLAMA, "num_key_value_heads": 3, "num_hidden_layers": 6}
    plan, parallels = planned(transformers.LlamaConfig(**config), 2)
    (graph,) = contents(plan, parallels)["graphs"]
    (stack,) = [item for item in graph["items"] if "kinds" in item]
    assert len(stack["members"]) == 6
    assert len(stack["kinds"]) == 2
    kinds = [one["kind"] for one in stack["members"]]
    assert kinds.count(0) == kinds.count(1) == 3


def test_packed_and_uneven_shards_are_drawn(plans):
    found = contents(*plans("gpt2, 3 devices"))
    weights = {
        filled(item["name"], member): found["weights"][item["weight"]]
        for item, member in leaves(found["graphs"][0]["items"])
        if "weight" in item
    }
    packed = weights["h.0.attn.c_attn.weight"]
    ((dim, owned),) = packed["shards"]
    assert (dim, packed["cuts"]) == (1, {1: [60, 120]})
    assert sorted(sum(stop - start for start, stop in own) for own in owned) == [45, 45, 90]  # 1, 1, 2 heads
    assert all(len(own) == 3 for own in owned)
    assert sorted(packed["held"]) == [60 * 45 * 4, 60 * 45 * 4, 60 * 90 * 4]


def test_nothing_in_the_data_can_end_their_element():
    value = {"a": "</script><script>alert(1)</script><!--", "b": "\u2028"}
    text = embedded(value)
    assert "<" not in text
    assert json.loads(text) == value


def test_a_page_needs_nothing_else(plans):
    text = page(*plans("gpt2, 3 devices"))
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "<!--put" not in text
    addresses = set(re.findall(r"https?://[^\s'\"]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a format


@pytest.mark.parametrize("name", CASES)
def test_drawings_are_well_formed(plans, name):
    plan, parallels = plans(name)
    texts = [element.text for element in ET.fromstring(svg(plan, parallels)).iter() if element.text]
    stem = FRAMES[name]
    assert stem in texts
    assert ("layers.3–0 ×4, backward" in texts) == name.endswith("train")
    assert any("all_reduce" in text for text in texts)
    text = dot(plan, parallels)
    assert f'label="{stem}"' in text
    assert text.count("{") == text.count("}")
    assert re.search(r'\[label="[^"]*all_reduce', text)


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


@pytest.mark.parametrize(
    ("format", "start"),
    [("html", "<!doctype html>"), ("svg", "<svg "), ("dot", "digraph "), ("model-explorer", "{")],
)
def test_the_command_line_writes_them(monkeypatch, capsys, format, start):
    settings = [word for key, value in GPT2.items() for word in ("--set", f"{key}={value}")]
    monkeypatch.setattr(sys, "argv", ["tpfx", "dump", "gpt2", "-n", "2", "--format", format, *settings])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(start)


def test_a_drawing_is_of_the_parallel_graph(monkeypatch, capsys):
    arguments = ["tpfx", "dump", "gpt2", "-n", "2", "--format", "svg", "--stage", "axes"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert "leave out --stage axes" in capsys.readouterr().err


# In a browser.


@pytest.fixture
def opened(browser, tmp_path, plans):
    """Opens the page of a case: `(the page, what its script complained of)`."""

    def open_(name):
        path = tmp_path / "page.html"
        path.write_text(page(*plans(name)), encoding="utf-8")
        tab, errors = browser.new_page(), []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else errors.append(r.url))
        tab.goto(path.as_uri())
        return tab, errors

    return open_


@pytest.mark.browser
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "train" in name else []) for name in CASES]
)
def test_the_numbers_on_show_are_those_of_the_plan(opened, plans, name):
    plan, _ = plans(name)
    tab, errors = opened(name)
    for at, graph in enumerate(plan.graphs):
        tab.click(f"#tab-{at}")
        assert numbers(tab, "#devices [data-kind=weights]") == plan.bytes_per_device
        assert numbers(tab, "#devices [data-kind=kept]") == graph.estimate.kept
        assert numbers(tab, "#devices [data-kind=activations]") == graph.estimate.activations
        assert numbers(tab, "#figures [data-kind=total]") == [plan.total_bytes]
        assert numbers(tab, "#figures [data-kind=messages]") == [sum(m.bytes for m in graph.collectives)]
        on_arrows = numbers(tab, ".tree > li > .arrow .pill, .tree > .message .pill")
        assert sum(on_arrows) == sum(message.bytes for message in graph.collectives)
        optimal = tab.get_attribute("#figures [data-kind=optimal]", "data-optimal")
        assert optimal == str(graph.optimal).lower()
    assert errors == []


def numbers(tab, selector):
    return [int(one.get_attribute("data-bytes")) for one in tab.query_selector_all(selector)]


@pytest.mark.browser
def test_search_finds_a_weight_of_any_layer(opened, plans):
    plan, _ = plans("gpt2, 3 devices")
    tab, errors = opened("gpt2, 3 devices")
    tab.keyboard.press("/")
    tab.keyboard.type("h.2 c_attn weight")
    assert tab.inner_text("#found [aria-selected=true]").split() == [
        "weight",
        "transformer.h.2.attn.c_attn.weight",
    ]
    tab.keyboard.press("Enter")
    weight = plan.weights["transformer.h.2.attn.c_attn.weight"]
    assert tab.inner_text("#details h2") == "transformer.h.2.attn.c_attn.weight"
    assert numbers(tab, "#details .held [data-bytes]") == [weight.on_rank(rank) for rank in range(3)]
    assert tab.evaluate("document.activeElement.dataset.name") == "h.2.attn.c_attn.weight"
    tab.keyboard.press("Escape")
    assert "How to read this" in tab.inner_text("#details")
    assert errors == []


@pytest.mark.browser
def test_keys_and_clicks_open_explanations(opened):
    tab, errors = opened("llama, 2 devices, decode")
    tab.focus("[role=treeitem]")
    tab.keyboard.press("End")  # what no graph uses; then the results
    tab.keyboard.press("ArrowUp")
    tab.keyboard.press("ArrowUp")
    tab.keyboard.press("Enter")
    assert tab.inner_text("#details h2") == "lm_head"
    assert "Column parallel" in tab.inner_text("#details")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    assert "modeling_llama.py" in tab.inner_text("#details .source")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    assert tab.get_attribute("[data-name=lm_head]", "aria-expanded") == "false"
    tab.click('[data-name="layers.0–3"] > .row')
    tab.click('[data-name="layers.0.self_attn"] > .row')
    tab.click('[data-name="layers.0.self_attn.o_proj"] > .row')
    assert "Row parallel" in tab.inner_text("#details")
    tab.click(".stepper button:last-of-type")
    assert tab.query_selector('[data-name="layers.1.self_attn"]')
    assert errors == []
