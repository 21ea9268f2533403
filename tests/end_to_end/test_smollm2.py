"""A real model, SmolLM2-135M-Instruct, on 2 and 3 devices: 9 heads, 3 KV heads, a tied vocabulary of
49,152."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import tpfx
from tests.support.smollm2 import needs_smollm2, smollm2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), needs_smollm2]
PROMPT = {"input_ids": torch.tensor([[49, 2644, 4653]])}  # any ids do
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 64, "do_sample": False},
    "beams": {"max_new_tokens": 16, "num_beams": 5, "do_sample": False},
    "sampling": {"max_new_tokens": 16, "do_sample": True, "temperature": 0.9, "top_k": 40},
}


def texts(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    made = {}
    for way, options in WAYS.items():
        torch.manual_seed(3)
        made[way] = model.generate(**PROMPT, **options)
    return made


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return texts(smollm2())


@pytest.mark.parametrize("devices", [2, 3])
def test_writes_the_same_text(devices: int, expected: dict[str, torch.Tensor]) -> None:
    model = tpfx.compile(smollm2(), ["cpu"] * devices)
    report = tpfx.report(model)
    assert max(report.bytes_per_device) <= 1.10 / devices * report.total_bytes
    for way, text in texts(model).items():
        assert torch.equal(text, expected[way]), way
    assert not [c for c in tpfx.report(model).collectives if c.kind == "all_gather"]
