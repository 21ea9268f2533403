"""A graph as blocks: every op as the dump has it, alike layers once."""

import re
from collections import Counter

import pytest
import transformers

from tests.support.drawn import CASES, LLAMA, captured, filled, leaves, sheet
from tpfx.draw.page import contents, page
from tpfx.draw.sheet import sheet_of
from tpfx.dump.text import dump_json


def ordered(text):
    """A type with the factors of its sizes in one order: s1*s0 as s0*s1."""
    return re.sub(r"[\w()]+(\*[\w()]+)+", lambda found: "*".join(sorted(found[0].split("*"))), text)


@pytest.mark.parametrize("name", CASES)
def test_every_op_is_on_the_page_as_the_dump_has_it(sheets, name):
    drawn = sheets(name)
    for graph, parallel in zip(contents(drawn)["graphs"], drawn.parallels, strict=True):
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


@pytest.mark.recent_models
def test_alike_layers_are_in_the_page_once(sheets):
    drawn = sheets("llama, 2 devices, decode")
    for graph in contents(drawn)["graphs"]:
        (stack,) = [item for item in graph["items"] if "kinds" in item]
        assert [one["name"] for one in stack["members"]] == [f"layers.{at}" for at in range(4)]
        assert len(stack["kinds"]) == 1
    larger = transformers.LlamaConfig(**{**LLAMA, "num_hidden_layers": 8})
    larger = sheet_of(*captured(larger, "decode"), 2)
    assert len(page([larger])) < 1.05 * len(page([drawn]))


@pytest.mark.recent_models
def test_the_backward_pass_goes_back_through_the_layers(sheets):
    (graph,) = contents(sheets("llama, 2 devices, train"))["graphs"]
    forward, backward = [item for item in graph["items"] if "kinds" in item]
    names = [one["name"] for one in forward["members"]]
    assert [one["name"] for one in backward["members"]] == names[::-1]
    inside = [item["backward"] for item, _ in leaves([backward])]
    assert inside and all(inside)


@pytest.mark.recent_models
def test_layers_of_two_kinds_are_one_stack():
    """Remainders alternate: of 3 key and value heads, 2 devices have 2 and 1, then 1 and 2."""
    config = {**LLAMA, "num_key_value_heads": 3, "num_hidden_layers": 6}
    (graph,) = contents(sheet(transformers.LlamaConfig(**config), 2))["graphs"]
    (stack,) = [item for item in graph["items"] if "kinds" in item]
    assert len(stack["members"]) == 6
    assert len(stack["kinds"]) == 2
    kinds = [one["kind"] for one in stack["members"]]
    assert kinds.count(0) == kinds.count(1) == 3


def test_packed_and_uneven_shards_are_drawn(sheets):
    found = contents(sheets("gpt2, 3 devices"))
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
