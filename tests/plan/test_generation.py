"""The calls of `generate`: what the first is given, and that a plan of them is what `compile` follows."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.architectures import t5
from tests.support.architectures import tiny as tiny_of
from tests.support.fresh_python import run
from tests.support.models import inputs, tiny, without_weights
from tests.support.nets import state_of
from tpfx.capture.capture import capture
from tpfx.plan.generation import capture_generation, first_of_generate
from tpfx.plan.plan import Plan

GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


def test_the_first_call_of_generate(caplog: pytest.LogCaptureFixture) -> None:
    """It is what `generate` passes with these inputs; nothing runs, is said, or stays behind."""
    model, seen = tiny("llama", num_hidden_layers=1), list[Any]()
    model.generation_config.update(num_beams=2, max_length=3, do_sample=True)  # of which generate warns
    own, before = {"input_ids": torch.full((2, 5), 7)}, state_of(model)
    model.register_forward_pre_hook(lambda *given: seen.append(given[2]) or None, with_kwargs=True)
    logging.getLogger("transformers").addHandler(caplog.handler)
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.simplefilter("error")
        call = first_of_generate(model, own)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert call is not None and not seen and not caplog.records and state_of(model) == before
    model.generate(**own, max_new_tokens=1)
    assert call.keys() == seen[0].keys() and call["input_ids"].shape == seen[0]["input_ids"].shape
    kept = "cache" if "cache" in call else "past_key_values"  # as transformers 5.24 has it
    assert type(call[kept]) is type(seen[0][kept])


def _of(**settings: Any) -> nn.Module:
    model = tiny("llama", num_hidden_layers=1)
    model.generation_config.update(**settings)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny_of("bart", "seq2seq")[0],  # generate calls the encoder first
        lambda: tiny_of("bert", "masked")[0],  # it cannot generate
        lambda: _of(cache_implementation="static"),  # of the size of one call
        lambda: _of(penalty_alpha=0.6, top_k=4),  # whose code comes from elsewhere
        lambda: _of(num_beams=0),  # generate fails
        nn.ReLU,
    ],
)
def test_models_whose_first_call_of_generate_is_not_known(make: Any) -> None:
    model = make()
    before = state_of(model)
    assert first_of_generate(model, {"input_ids": torch.ones(2, 5, dtype=torch.int64)}) is None
    assert first_of_generate(model, (torch.ones(2, 5),)) is None
    assert state_of(model) == before


def _followed(model: Any, plan: Plan | Path, devices: int) -> list[tuple[str, int]]:
    """How many graphs of a `generate`, which gives the tokens that it gave before, each of a plan's made."""
    given = inputs(model)
    expected = model.generate(**given, **GREEDY)
    split = tpfx.compile(model, ["cpu"] * devices, plan=plan)
    assert torch.equal(split.generate(**given, **GREEDY), expected)
    report = tpfx.report(split)
    assert report.planned and len(report.followed) == report.graphs
    return report.followed


def test_generate_follows_a_plan_that_was_made_without_weights(tmp_path: Path) -> None:
    """Of its first call and of its steps, whatever their batch; that nothing was drawn for it."""
    empty, before = without_weights("llama", num_hidden_layers=1), torch.get_rng_state()
    plan = tpfx.plan(empty, 3)
    assert torch.equal(torch.get_rng_state(), before)
    plan.save(tmp_path / "plan.json")
    model = tiny("llama", num_hidden_layers=1)
    assert _followed(model, tmp_path / "plan.json", 3) == [("prefill", 1), ("decode", 1)]
    assert "graphs carried out as the plan's decode" in str(tpfx.report(model))


def test_phases_of_a_model_that_generates() -> None:
    model = tiny("gpt2", num_hidden_layers=1)
    before = state_of(model)
    whole = capture_generation(model, None)
    (first,) = capture_generation(model, None, phase="prefill")
    assert [one.phase for one in whole] == ["prefill", "decode"] and first.phase == "prefill"
    assert str(first.module.graph) == str(whole[0].module.graph) and whole[1].kept
    assert [one.phase for one in capture_generation(model, inputs(model), phase="train")] == ["train"]
    assert state_of(model) == before


def test_what_does_not_generate_is_one_call() -> None:
    model, given = tiny_of("bert", "masked")
    (one,), (same,) = capture_generation(model, given), capture(model, given)
    assert one.phase == "prefill" and str(one.module.graph) == str(same.module.graph)


_WRITES = """
import sys, tpfx
from tests.support.architectures import t5
from tests.support.models import inputs, tiny, without_weights
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_a_plan_of_another_process_is_followed(devices: int, tmp_path: Path) -> None:
    """An encoder's and a decoder's, whose first step is a graph of its own: its past of 1 is a constant."""
    makes = {
        "llama": "without_weights('llama')",
        "gpt2": "without_weights('gpt2')",
        "t5": "t5()",
    }
    saves = [f"tpfx.plan({make}, {devices}).save({str(tmp_path / name)!r})" for name, make in makes.items()]
    run("\n".join((_WRITES, *saves)))
    two = [("prefill", 1), ("decode", 1)]
    assert _followed(tiny("llama"), tmp_path / "llama", devices) == two
    assert _followed(tiny("gpt2"), tmp_path / "gpt2", devices) == two
    assert _followed(t5(), tmp_path / "t5", devices) == [("prefill", 1), *two, ("decode", 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_training_follows_a_plan_of_another_process(name: str, tmp_path: Path) -> None:
    given = inputs(tiny(name))
    code = f"given = inputs(tiny({name!r})); given['labels'] = given['input_ids'].clone()\n"
    plan = f"tpfx.plan(without_weights({name!r}), 2, given, phase='train')"
    run(f"{_WRITES}{code}{plan}.save({str(tmp_path / 'p')!r})")
    model = tpfx.compile(tiny(name).train(), ["cpu"] * 2, plan=tmp_path / "p")
    model(**given, labels=given["input_ids"].clone()).loss.backward()
    report = tpfx.report(model)
    assert report.planned and {count for _, count in report.followed} == {1}
    assert len(report.followed) == report.graphs
    longer = inputs(model, length=9)
    model(**longer, labels=longer["input_ids"].clone()).loss.backward()
    assert tpfx.report(model).graphs == report.graphs, "also of GPT-2's loss, which has a graph of its own"
