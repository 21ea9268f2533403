"""The arguments of a call, and which of their sizes vary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tpfx.capture.inputs import call_of, is_text, leave_sizes_open, varying_sizes
from tpfx.errors import InputError
from tpfx.torch_internals.dynamo import dynamic_sizes

IDS = torch.int64

# name: (an input, whether it is text, the sizes that vary)
INPUTS: dict[str, tuple[torch.Tensor, bool, set[int]]] = {
    "tokens": (torch.zeros(2, 7, dtype=IDS), True, {0, 1}),
    "embeddings": (torch.zeros(2, 7, 16), True, {0, 1}),
    "images": (torch.zeros(2, 3, 8, 8), False, {0}),
    "a mask of heads": (torch.zeros(2, 7, 7, dtype=torch.bool), False, {0}),
    "labels": (torch.zeros(5, dtype=IDS), False, {0}),
    "a number": (torch.tensor(3), False, set()),
    "a step": (torch.zeros(2, 1, dtype=IDS), True, {0}),
    "a step of one row": (torch.zeros(1, 1, dtype=IDS), True, {0}),
    "one row": (torch.zeros(1, 7, dtype=IDS), True, {0, 1}),
    "one image": (torch.zeros(1, 3, 8, 8), False, {0}),
    "a vector of one": (torch.zeros(1), False, set()),
}


@pytest.mark.parametrize("name", INPUTS)
def test_which_sizes_vary(name: str) -> None:
    value, text, varying = INPUTS[name]
    assert is_text(value) is text
    assert varying_sizes(value) == varying
    leave_sizes_open(value)
    assert dynamic_sizes(value) == (varying if value.dim() else None)


class Own(nn.Module):
    """A model with inputs of its own."""

    dummy_inputs = {"x": 1}  # noqa: RUF012


@pytest.mark.parametrize(
    ("model", "given", "call"),
    [
        (nn.ReLU(), (1, 2), ((1, 2), {})),
        (nn.ReLU(), [1], ((1,), {})),
        (nn.ReLU(), {"input": 1}, ((), {"input": 1})),
        (Own(), None, ((), {"x": 1})),
        (Own(), (3,), ((3,), {})),
    ],
)
def test_the_arguments_of_a_call(model: nn.Module, given: Any, call: Any) -> None:
    assert call_of(model, given) == call


def test_inputs_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(InputError, match="ReLU has no inputs of its own; pass a tuple of arguments"):
        call_of(nn.ReLU(), None)
    with pytest.raises(InputError, match="ReLU cannot be called with a Tensor"):
        call_of(nn.ReLU(), torch.zeros(2))  # type: ignore[arg-type]
