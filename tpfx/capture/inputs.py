"""The inputs of one call of a model, and which of their sizes vary from call to call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import InputError
from ..torch_internals.dynamo import dynamic_sizes, mark_dynamic_sizes

# Arguments of one call, or its keyword arguments.
Inputs = tuple[Any, ...] | Mapping[str, Any]


def call_of(model: torch.nn.Module, inputs: Inputs | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments and keyword arguments of one call; a transformers model has inputs of its own.

    Raises:
        InputError: the model has none, or these are of the wrong kind.
    """
    given = getattr(model, "dummy_inputs", None) if inputs is None else inputs
    if isinstance(given, Mapping):
        return (), dict(given)
    if isinstance(given, (tuple, list)):
        return tuple(given), {}
    what = "has no inputs of its own" if given is None else f"cannot be called with a {type(given).__name__}"
    raise InputError(
        f"{type(model).__name__} {what}; pass a tuple of arguments or a dict of keyword arguments"
    )


def is_text(value: torch.Tensor) -> bool:
    """Whether an input has a length as its second size: `[batch, length]`, or `[batch, length, d]`."""
    return value.dim() == 2 or (value.dim() == 3 and value.is_floating_point())


def varying_sizes(value: torch.Tensor) -> set[int]:
    """The dimensions of an input whose size varies from call to call: its batch, and the length of text.

    A size of 1 is a constant: one token is a step of a generation, which has graphs of its own. A batch of 1
    may grow, but for that of a vector, which may be no batch at all.
    """
    if not value.dim():
        return set()
    varying = {0, 1} if is_text(value) else {0}
    return {dim for dim in varying if value.shape[dim] != 1 or (dim == 0 and value.dim() > 1)}


def is_one_token(value: torch.Tensor) -> bool:
    """Whether an input is text of one token a row: the call is a step of a generation."""
    return is_text(value) and value.shape[1] == 1


def leave_sizes_open(value: torch.Tensor) -> None:
    """Let the graphs that take an input serve all of its varying sizes, where nothing has been said of them.

    Other sizes of 1 are constants.
    """
    if value.dim() and dynamic_sizes(value) is None:
        varying = varying_sizes(value)
        ones = {dim for dim, size in enumerate(value.shape) if size == 1} - varying
        mark_dynamic_sizes(value, varying, ones)
