"""Captures without an end: what differs from call to call is a constant of a graph, and each call gets one.

note_capture(code, variables, "0/7: len(G['log']) == 7  # log.append(out)")    # what Dynamo says of a capture
note_state(model, "forward")                                                  # a hook has come, or gone

It is said once of each model and reason: what differs, and how to have one graph for all.
"""

from __future__ import annotations

import re
import warnings
import weakref
from collections import Counter
from collections.abc import Mapping
from types import CodeType
from typing import Any

import torch

from ..console.logs import log_of

log = log_of("recompiles")

ENOUGH = 8  # captures for one reason

_counts: weakref.WeakKeyDictionary[Any, Counter[str]] = weakref.WeakKeyDictionary()


def note_capture(code: CodeType, variables: Mapping[str, Any], failure: str) -> None:
    """A function has been captured again, since a graph of it does not hold any more.

    Args:
        code: the function's.
        variables: its arguments.
        failure: which of the graph's conditions failed, as Dynamo tells it.
    """
    condition, *where = [part.strip() for part in failure.partition("\n")[0].split("  # ")]
    condition = condition.partition(": ")[2] or condition
    model = next((value for value in variables.values() if isinstance(value, torch.nn.Module)), None)
    name = re.sub(r"_\d+$", "", code.co_name)  # each compiled method has a number
    if model is not None:
        name = f"{type(model).__name__}.{name}"
    log.info("%s is captured again, since this does not hold: %s", name, " at ".join([condition, *where]))
    if _is_one_too_many(code if model is None else model, re.sub(r"\d[\d.e+-]*", "?", condition)):
        _warn(
            f"{name} has been captured again {ENOUGH} times, and calls may go on so: the graph before "
            f"was for {' at '.join([condition, *where])}. What differs from call to call is a constant "
            "of a graph; empty such a list before a call, hand in such a number as a tensor, or put "
            "torch.compiler.disable on the function that uses it"
        )


def note_state(model: torch.nn.Module, method: str) -> None:
    """A model has been changed, so that a method of it gets other graphs."""
    log.info("%s.%s is captured again: it has other hooks or weights", type(model).__name__, method)
    if _is_one_too_many(model, method):
        _warn(
            f"{type(model).__name__}.{method} has been captured again {ENOUGH} times, each time with other "
            "hooks than before, or weights of other shapes or requires_grad; register hooks once, and have "
            "them look at a flag"
        )


def _is_one_too_many(owner: Any, reason: str) -> bool:
    counts = _counts.setdefault(owner, Counter())
    counts[reason] += 1
    return counts[reason] == ENOUGH


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)
