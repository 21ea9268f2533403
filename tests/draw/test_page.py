"""Pages and drawings of plans: they say what the plan's JSON says, alike layers are in them once."""

import json
import re
from collections import Counter
from importlib.resources import files

import pytest

from tests.support.drawn import CASES, filled, leaves
from tpfx.draw.page import contents, embedded, page
from tpfx.ir.resharding import COLLECTIVES, shard, to_partial


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
        collectives = graph["collectives"]
        for one in drawn["collectives"]:
            alike = [
                m["bytes"] for m in collectives if (m["kind"], m["phase"]) == (one["kind"], one["phase"])
            ]
            assert (one["count"], one["bytes"]) == (len(alike), sum(alike))
        assert sum(one["count"] for one in drawn["collectives"]) == len(collectives)
        inside = [item["collective"] for item, _ in leaves(drawn["items"]) if "collective" in item]
        inside = Counter((one["kind"], one["bytes"]) for one in inside)
        assert inside == Counter((m["kind"], m["bytes"]) for m in collectives if m["kind"] != "gather")


@pytest.mark.parametrize("name", CASES)
def test_every_weight_is_on_the_page_as_the_plan_has_it(plans, name):
    plan, parallels = plans(name)
    found = contents(plan, parallels)
    assert len(found["graphs"]) == len(parallels) > 0
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


def test_the_page_has_words_for_every_note_and_every_conversion(plans):
    """Of ops; the notes are those of the dump, the conversions those of `ir.resharding`."""
    script = (files("tpfx.draw.page") / "details.js").read_text()
    patterns = re.findall(r"^  \[/(.+)/, \(", script, re.MULTILINE)
    notes = {
        note
        for name in CASES
        for graph in contents(*plans(name))["graphs"]
        for item, _ in leaves(graph["items"])
        if "call" in item and "collective" not in item
        for note in item["notes"]
    }
    assert "partial sum" in notes
    assert [note for note in notes if not any(re.search(pattern, note) for pattern in patterns)] == []
    told = set(re.findall(r"^  (\w+): '", script, re.MULTILINE))
    assert told == {*COLLECTIVES.values(), "gather", shard.__name__, to_partial.__name__}


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
        assert numbers(tab, "#figures [data-kind=collectives]") == [sum(m.bytes for m in graph.collectives)]
        on_arrows = numbers(tab, ".tree > li > .arrow .pill, .tree > .collective .pill")
        assert sum(on_arrows) == sum(one.bytes for one in graph.collectives)
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
    assert numbers(tab, "#details .held [data-bytes]") == weight.on_ranks([0] * 3)
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
