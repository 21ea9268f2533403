"""What torch notes when a module is changed: registration hooks, and the ids of handles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules import module as all_modules

from tpfx.torch_internals.module_changes import CHANGE_EFFECTS, CHANGES, Changes, hook_tables


def test_parameters_submodules_and_hooks_are_noted_while_the_effect_is_made() -> None:
    net = nn.ModuleList([nn.Linear(2, 2)])
    changes = (
        lambda: net[0].register_parameter("weight", nn.Parameter(torch.ones(2, 2))),
        lambda: net.append(nn.ReLU()),
        lambda: setattr(net, "last", nn.Identity()),
    )
    often = [_noted(change) for change in changes]  # by the effect of a model that lives, if there is one
    undo = CHANGE_EFFECTS[0].install()
    assert [_noted(change) for change in changes] == [count + 1 for count in often]
    undo()
    assert [_noted(change) for change in changes] == often
    assert _noted(lambda: net.register_forward_hook(lambda *_: None)) == 1


def _noted(change: Callable[[], object]) -> int:
    before = CHANGES.number()
    change()
    return CHANGES.number() - before


def test_what_is_noted_makes_another_number() -> None:
    changes = Changes()
    before = changes.number()
    changes.note()
    assert changes.number() == before + 1


def test_the_tables_of_hooks_are_those_inside_of_a_model_and_those_of_all_modules() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    net.register_forward_hook(lambda *_: None)
    assert not list(hook_tables(net))
    for register in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"):
        getattr(net[0], f"register_{register}")(lambda *_: None)
    assert len(list(hook_tables(net))) == 4
    handle = all_modules.register_module_forward_pre_hook(lambda *_: None)
    assert len(list(hook_tables(net))) == 5
    handle.remove()
    assert len(list(hook_tables(net))) == 4
