"""Dynamo's guards of a compiled model ask nothing that a call cannot change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tpfx
from tests.support.models import tiny
from tests.support.nets import Net
from tpfx.frontend.graphs import Backend
from tpfx.sharded_tensor import ShardedTensor


def test_a_call_does_not_look_inside_of_split_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    split, x, asked = tpfx.compile(Net(), ["cpu", "cpu"]), torch.randn(4, 8), []
    parts = ShardedTensor.__tensor_flatten__

    def count(self: ShardedTensor) -> Any:
        asked.append(self)
        return parts(self)

    monkeypatch.setattr(ShardedTensor, "__tensor_flatten__", count)
    split(x)
    assert asked  # while it is captured
    asked.clear()
    split(x)
    assert not asked and tpfx.report(split).graphs == 1


@pytest.mark.recent_models
def test_the_first_generate_captures_only_what_compile_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """What compile captures is the call that generate makes first, of any batch."""
    capture, captured, plain = Backend.__call__, [], tiny("llama", num_hidden_layers=1)

    def count(self: Backend, *given: Any) -> Any:
        captured.append(self)
        return capture(self, *given)

    monkeypatch.setattr(Backend, "__call__", count)
    split = tpfx.compile(tiny("llama", num_hidden_layers=1), ["cpu", "cpu"])
    assert len(captured) == 1 and tpfx.report(split).graphs == 0  # it is lowered when it runs
    for rows, length in ((1, 9), (4, 6)):
        ids = torch.randint(3, 250, (rows, length))
        expected = plain.generate(ids, max_new_tokens=4, do_sample=False)
        assert torch.equal(split.generate(ids, max_new_tokens=4, do_sample=False), expected)
        assert len(captured) == tpfx.report(split).graphs == 2
