"""Pages and drawings of plans: they say what the plan's JSON says, alike layers are in them once."""

import json
import re
from collections import Counter
from importlib.resources import files

import pytest

from tests.support.drawn import CASES, filled, leaves
from tpfx.draw.measured import Span
from tpfx.draw.page import contents, embedded, page
from tpfx.draw.sheet import judged, sheet_of
from tpfx.formatting import seconds_text
from tpfx.ir.resharding import COLLECTIVES, shard, to_partial
from tpfx.ir.shards import even_layout
from tpfx.plan.verdict import Call
from tpfx.planning import hardware_of


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_the_plan(sheets, name):
    plan = sheets(name).plan
    found, saved = json.loads(json.dumps(contents(sheets(name)))), json.loads(plan.to_json())
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
def test_every_weight_is_on_the_page_as_the_plan_has_it(sheets, name):
    plan = sheets(name).plan
    found = contents(sheets(name))
    assert len(found["graphs"]) == len(sheets(name).parallels) > 0
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
            shards = even_layout(mine.shape, [0] * plan.devices) if mine.shards is None else mine.shards
            assert (weight["unused"], tuple(weight["shards"])) == (mine.shards is None, shards.dims)
        held = [sum(w["held"][rank] for w in weights.values()) for rank in range(plan.devices)]
        assert held == plan.bytes_per_device


def test_nothing_in_the_data_can_end_their_element():
    value = {"a": "</script><script>alert(1)</script><!--", "b": "\u2028"}
    text = embedded(value)
    assert "<" not in text
    assert json.loads(text) == value


def test_a_page_needs_nothing_else(sheets):
    text = page([sheets("gpt2, 3 devices")])
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert "<!--put" not in text
    addresses = set(re.findall(r"https?://[^\s'\"]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a format


def test_the_page_has_words_for_every_note_and_every_conversion(sheets):
    """Of ops; the notes are those of the dump, the conversions those of `ir.resharding`."""
    script = (files("tpfx.draw.page") / "details.js").read_text()
    patterns = re.findall(r"^  \[/(.+)/, \(", script, re.MULTILINE)
    notes = {
        note
        for name in CASES
        for graph in contents(sheets(name))["graphs"]
        for item, _ in leaves(graph["items"])
        if "call" in item and "collective" not in item
        for note in item["notes"]
    }
    assert "partial sum" in notes
    assert [note for note in notes if not any(re.search(pattern, note) for pattern in patterns)] == []
    told = set(re.findall(r"^  (\w+): '", script, re.MULTILINE))
    assert told == {*COLLECTIVES.values(), "gather", shard.__name__, to_partial.__name__}


# In a browser.


LLAMA = "llama, 2 devices, decode"


@pytest.fixture
def opened(browser, tmp_path, sheets):
    """Opens the page of a case, or of sheets: `(the page, what its script complained of)`."""

    def open_(found, measured=(), **how):
        path = tmp_path / "page.html"
        shown = [sheets(found)] if isinstance(found, str) else found
        path.write_text(page(shown, measured=measured), encoding="utf-8")
        tab, errors = browser.new_context(**how).new_page(), []
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
        assert numbers(tab, "#view [data-kind=weights]") == plan.bytes_per_device
        assert numbers(tab, "#view [data-kind=kept]") == graph.estimate.kept
        assert numbers(tab, "#view [data-kind=activations]") == graph.estimate.activations
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


@pytest.mark.browser
def test_search_says_how_many_are_alike(opened):
    tab, errors = opened(LLAMA)
    tab.fill("#search", "q_proj weight")
    *others, found = [one.inner_text().split() for one in tab.query_selector_all("#found [role=option]")]
    alone, same = len(others), 4 - len(others)  # the first layer has ops of its own in transformers 5.17
    assert alone < 2 and found == [
        "weight",
        f"model.layers.{alone}.self_attn.q_proj.weight",
        f"×{same}",
        "alike",
    ]
    assert tab.inner_text("#many") == f"4 found, {alone + 1} of them different."
    tab.fill("#search", "layers.2 q_proj weight")
    assert f"one of {same} alike" in tab.inner_text("#found")
    assert errors == []


@pytest.mark.browser
def test_a_choice_is_explained_with_what_every_other_way_costs(opened, sheets):
    prices = sheets(LLAMA).prices[0]
    price = next(ways for node, ways in prices.items() if node.startswith("linear"))
    tab, errors = opened(LLAMA)
    tab.fill("#search", "q_proj")
    tab.click("#found [role=option]:has(.op)")
    costs = [float(row.get_attribute("data-more")) for row in tab.query_selector_all("#details .ways tr")]
    assert costs == sorted(costs) == pytest.approx([way.more for way in price], rel=1e-5)
    assert tab.inner_text("#details .ways .chosen td") == "chosen"
    assert tab.inner_text("#said").endswith("q_proj is explained in the region Explanation.")
    assert errors == []


@pytest.mark.browser
def test_a_call_in_time_takes_what_is_estimated(opened, sheets):
    plan = sheets("gpt2, 3 devices").plan
    run = plan.graphs[0].estimate
    spans = [Span(rank, "h.1", "compute", 0.001 * rank, 0.002) for rank in range(3)]
    tab, errors = opened("gpt2, 3 devices", spans)
    tab.click("#view-time")
    assert (
        len(tab.query_selector_all(".track.estimated")) == len(tab.query_selector_all(".track.measured")) == 3
    )
    estimated, measured = tab.locator("#view .caption").all_inner_texts()[1:]
    assert f"{seconds_text(run.messages)} collectives" in estimated
    assert f"{seconds_text(run.compute)} compute" in estimated
    assert measured.startswith("Measured: 4 ms")
    tab.select_option("#view select", "h.1")
    assert "of h.1: 4 ms" in tab.locator("#view .caption").last.inner_text()
    assert errors == []
    even = sheets(LLAMA).plan.graphs[0].estimate.seconds  # no device waits, so that it takes the sum
    tab, errors = opened(LLAMA)
    tab.click("#view-time")
    assert f"Estimated: {seconds_text(even)};" in tab.inner_text("#view")
    assert errors == []


@pytest.mark.browser
def test_memory_by_layer_adds_up(opened, sheets):
    plan = sheets(LLAMA).plan
    tab, errors = opened(LLAMA)
    tab.click("#tab-1")
    tab.click("#view-layers")
    weights = numbers(tab, "#view [data-kind=divided]") + numbers(tab, "#view [data-kind=everywhere]")
    assert sum(weights) == plan.bytes_per_device[0]
    assert sum(numbers(tab, "#view [data-kind=kept]")) == plan.graphs[1].estimate.kept[0]
    assert max(numbers(tab, "#view [data-kind=activations]")) == plan.graphs[1].estimate.activations[0]
    assert tab.inner_text('[data-layer="layers.0–3"] .times') == "×4"
    tab.check("#view [type=checkbox]")
    assert sum(numbers(tab, "#view [data-kind=kept]")) == plan.graphs[1].estimate.kept[0]
    assert tab.query_selector('[data-layer="layers.3"]')
    assert errors == []


@pytest.mark.browser
def test_arrows_are_as_thick_as_what_flows(opened):
    tab, errors = opened(LLAMA)
    arrows = tab.evaluate(
        """[...document.querySelectorAll(".tree > li > .arrow > .line")].map(
            (line) => [Number(line.dataset.bytes), line.getBoundingClientRect().width])"""
    )
    assert len({size for size, _ in arrows}) > 2
    widths = [width for _, width in sorted(arrows)]
    assert widths == sorted(widths)
    assert widths[-1] > 1.5 * widths[0]
    assert errors == []


@pytest.fixture(scope="module")
def several(sheets, captures):
    """A model on one device and on two, with verdicts."""
    alone = sheet_of(*captures(LLAMA), 1)
    return judged([alone, sheets(LLAMA)], hardware_of("rtx-3090", None), Call(2, 12))


@pytest.mark.browser
def test_numbers_of_devices_stand_side_by_side(opened, several):
    tab, errors = opened(several)
    seconds = [
        float(one.get_attribute("data-seconds")) for one in tab.query_selector_all("#view [data-seconds]")
    ]
    assert seconds == pytest.approx([one.plan.graphs[0].estimate.seconds for one in several])
    assert tab.inner_text("#verdict dd").startswith("2 × RTX 3090")
    assert "Row parallel" not in tab.inner_text("#details")
    assert "pill" in tab.inner_text("#details")
    tab.click("#view [data-devices='1'] button")
    assert tab.inner_text("#verdict dd").startswith("1 × RTX 3090")
    assert tab.inner_text("#subtitle").startswith("on one device")
    assert "pill" not in tab.inner_text("#details"), "there are no collectives to explain"
    assert "hatched" not in tab.inner_text("#details")
    assert tab.evaluate("document.activeElement.textContent") == "1 device"
    assert errors == []


BROKEN = """() => [...document.querySelectorAll('.tree .name, #details h2, #found li span, h1')]
    .flatMap((one) => [...one.childNodes].filter((part) => part.nodeType === 3 && part.data.trim()))
    .filter((part) => {
        const range = document.createRange();
        range.selectNode(part);
        return range.getClientRects().length > 1;
    })
    .map((part) => part.data)"""


@pytest.mark.browser
def test_names_do_not_break_on_a_phone(opened, several):
    tab, errors = opened(several, viewport={"width": 390, "height": 844})
    for name in ("layers.0–3", "layers.0.self_attn", "layers.0.post_attention_layernorm"):
        tab.click(f'[data-name="{name}"] > .row')
        assert tab.evaluate(BROKEN) == []
    assert tab.is_visible("#details .close")
    tab.click("#details .close")
    for view in tab.query_selector_all("#views button"):
        view.click()
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert errors == []


FAINT = (files("tests.support") / "contrast.js").read_text()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(opened, several, scheme):
    tab, errors = opened(several, color_scheme=scheme)
    tab.click('[data-name="lm_head"] > .row')
    tab.fill("#search", "proj")
    for view in tab.query_selector_all("#views button"):
        view.evaluate("(one) => one.click()")
        assert tab.evaluate(FAINT) == []
    assert errors == []


@pytest.mark.browser
def test_all_of_it_can_be_reached_and_named_without_a_mouse(opened, several):
    tab, errors = opened(several, reduced_motion="reduce")
    reached = []
    for _ in range(60):
        tab.keyboard.press("Tab")
        where = tab.evaluate(
            """() => { const one = document.activeElement; return [one.id || one.className || one.tagName,
                one.getAttribute('aria-label') || one.innerText || one.labels?.[0]?.innerText || '',
                getComputedStyle(one.closest('.tree') ? one.querySelector('.row') : one).outlineStyle] }"""
        )
        if where[0] == "BODY":
            break
        reached.append(where)
    assert reached[0][:2] == ["skip", "To the graph"]
    assert {"search", "view", "tab-0", "view-compare"} <= {one for one, _, _ in reached}
    assert [one for one in reached if not one[1].strip()] == []
    assert [one for one in reached if one[2] == "none"] == []
    tab.focus("[role=treeitem]")
    tab.keyboard.press("l")
    assert tab.evaluate("document.activeElement.dataset.name") == "layers.0–3"
    tab.keyboard.press("l")
    assert tab.evaluate("document.activeElement.dataset.name") == "lm_head"
    lasting = tab.evaluate(
        "[...document.querySelectorAll('*')].map((one) => getComputedStyle(one).transitionDuration)"
    )
    assert set(lasting) == {"0s"}
    assert errors == []
