"""Captures without an end are said, once, with what differs and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from tests.support.autograd import split
from tests.support.nets import Net
from tpfx.frontend.recaptures import ENOUGH, note_capture, note_state

X = torch.ones(4, 8)


class Other(nn.Module):
    """Not a model of another test."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


CODE = Other.forward.__code__


@contextmanager
def one_warning(match: str) -> Iterator[None]:
    with pytest.warns(UserWarning, match=match) as seen:
        yield
    assert sum("captured again" in str(one.message) for one in seen) == 1


def test_it_is_said_once_of_each_model_and_reason() -> None:
    first, second = Other(), Other()
    where = r"Other\.forward has been captured again 8 times.*len\(log\) == 7 at log\.append\(x\)\."
    with one_warning(where):
        for at in range(3 * ENOUGH):
            note_capture(CODE, {"self": first}, f"0/{at}: len(log) == {at}   # log.append(x)\nmore")
    for at in range(ENOUGH - 1):
        note_capture(CODE, {"self": second}, f"0/{at}: len(log) == {at}   # log.append(x)")
        note_capture(CODE, {"self": second}, f"0/{at}: self.step == 0.1{at}e-3")
    with one_warning(r"Other\.forward.*captured again 8 times.*self\.step == 5e-1.*torch\.compiler\.disable"):
        note_capture(CODE, {"self": second}, "self.step == 5e-1")


def test_it_is_said_of_a_model_that_changes_before_each_call() -> None:
    model = Other()
    with one_warning(r"Other\.forward.*again 8 times.*other hooks.*look at a flag"):
        for _ in range(ENOUGH + 2):
            note_state(model, "forward")


@pytest.mark.slow
@pytest.mark.parametrize("door", ["compile", "backend"])
def test_a_hook_that_fills_a_list_is_named_with_its_remedies(door: str) -> None:
    model, log = Net(), list[torch.Tensor]()
    call = split(model, 2, door)
    handle = model.norm.register_forward_hook(lambda module, args, out: log.append(out))
    with torch.no_grad():
        with one_warning(r"Net\.forward.*len\(.*\) == \d+.*log\.append.*empty such a list"):
            for _ in range(ENOUGH + 3):
                call(X)
        assert len(log) == ENOUGH + 3
        for _ in range(ENOUGH + 3):  # as it says
            log.clear()
            call(X)
        handle.remove()
        model.norm.register_forward_hook(torch.compiler.disable(lambda module, args, out: log.append(out)))
        for _ in range(ENOUGH + 3):
            call(X)
