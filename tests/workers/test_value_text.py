"""Values as bytes."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from tpfx.workers.value_text import read_value, write_value


@pytest.mark.parametrize("value", [None, 7, 1 << 80, "x", torch.float16, (1, [2.5, "y"])])
def test_plain_values_are_the_same(value: Any) -> None:
    assert read_value(write_value(value)) == value


def test_a_sparse_tensor_arrives_and_is_let_go() -> None:
    """Unpickled by itself, torch would keep it, and check it with the next file."""
    whole = torch.eye(3)
    found = read_value(write_value(whole.to_sparse()))
    assert found.is_sparse and torch.equal(found.to_dense(), whole)
    gone = weakref.ref(found)
    del found
    gc.collect()
    assert gone() is None
