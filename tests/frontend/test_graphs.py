"""Dynamo's guards of a compiled model ask nothing that a call cannot change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tpfx
from tests.support.nets import Net
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
