"""A plan file of an earlier version is read, written, made anew and followed as it was.

Made by `tpfx plan llama -n 2 --length 4096` with the settings below; TPFX_UPDATE_GOLDENS=1 writes it again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

import tpfx
from tests.support.sharded import CPUS
from tpfx.cli import app
from tpfx.passes import pipeline
from tpfx.plan.plan import Plan

GOLDEN = Path(__file__).parents[1] / "goldens" / "llama-2.plan.json"
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 256,
}


def test_it_is_read_and_written_byte_for_byte(tmp_path: Path) -> None:
    Plan.load(GOLDEN).save(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_bytes() == GOLDEN.read_bytes()


@pytest.mark.recent_models
def test_it_is_planned_anew_byte_for_byte(tmp_path: Path) -> None:
    settings = [word for field, value in SIZES.items() for word in ("--set", f"{field}={value}")]
    made = tmp_path / "plan.json"
    done = CliRunner().invoke(
        app, ["plan", "llama", "-n", "2", "--length", "4096", *settings, "-o", str(made)]
    )
    assert done.exit_code == 0, done.output
    if os.environ.get("TPFX_UPDATE_GOLDENS"):
        GOLDEN.write_bytes(made.read_bytes())
    # transformers 5.24: its models have another name for what they keep.
    assert made.read_text().replace('"cache_', '"past_key_values_') == GOLDEN.read_text()


@pytest.mark.recent_models
def test_compile_follows_it_without_choosing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the plan says it")

    torch.manual_seed(0)
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    ids = torch.randint(3, SIZES["vocab_size"], (1, 12))
    greedy = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0}
    expected = plain.generate(ids, **greedy)
    monkeypatch.setattr(pipeline, "choose", never)
    model = tpfx.compile(plain, CPUS, plan=GOLDEN)
    assert torch.equal(model.generate(ids, **greedy), expected)
    report, plan = tpfx.report(model), Plan.load(GOLDEN)
    assert report.planned and report.followed == [("prefill", 1), ("decode", 1)]
    assert report.bytes_per_device == plan.bytes_per_device
