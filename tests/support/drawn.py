"""Plans to draw, and what a page makes of a layer's texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from tpfx.capture.capture import capture
from tpfx.ir.parallel_graph import ParallelGraph
from tpfx.plan.make import describe
from tpfx.plan.offline import plan_graphs
from tpfx.plan.plan import Plan
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


def planned(config: Any, devices: int, phase: str = "prefill") -> tuple[Plan, list[ParallelGraph]]:
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


def filled(text: str, member: dict[str, Any] | None) -> str:
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


def leaves(items: Any, member: dict[str, Any] | None = None) -> Iterator[tuple[Any, Any]]:
    """The weights and ops of a page, of every layer, with the layer that they are in."""
    for item in items:
        for one in item.get("members", []):
            yield from leaves(item["kinds"][one["kind"]]["parts"], one)
        if "parts" in item:
            yield from leaves(item["parts"], member)
        elif "kinds" not in item:
            yield item, member
