"""Plans to draw, and what a page makes of a layer's texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from tpfx.capture.capture import capture
from tpfx.capture.graph import Captured, Phase
from tpfx.draw.sheet import Sheet, sheet_of

LLAMA = {
    "vocab_size": 256,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
}
GPT2 = {"vocab_size": 99, "n_embd": 60, "n_head": 4, "n_layer": 3, "n_positions": 64}


def captured(config: Any, phase: Phase = "prefill") -> tuple[torch.nn.Module, list[Captured]]:
    """A model without contents, and its graphs."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    ids = torch.zeros(2, 12, dtype=torch.int64)
    inputs = {"input_ids": ids} | ({"labels": ids} if phase == "train" else {})
    return model, capture(model, inputs, phase=phase)


def sheet(config: Any, devices: int) -> Sheet:
    """A model that is planned."""
    return sheet_of(*captured(config), devices)


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
