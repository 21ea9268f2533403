"""What torch notes when a module is changed: registration hooks, and the ids of handles."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules import module as all_modules

from tpfx.torch_internals.module_changes import (
    CHANGES,
    Changes,
    hook_tables,
    remove_state_hooks,
)


def test_hooks_of_modules_and_tensors_make_another_number() -> None:
    net, weight = nn.Linear(2, 2), torch.ones(1, requires_grad=True)
    for register in (net.register_forward_hook, net.register_full_backward_hook, weight.register_hook):
        before = CHANGES.number()
        register(lambda *_: None)
        assert CHANGES.number() > before


def test_hooks_that_no_graph_relies_on_do_not_count() -> None:
    y, before = torch.ones(1, requires_grad=True).exp(), CHANGES.number_to_keep()
    CHANGES.without_counting(lambda: y.grad_fn.register_hook(lambda *_: None))
    assert CHANGES.number() == before


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


def test_hooks_of_state_dicts_are_taken_out() -> None:
    def ours(*_: object) -> None: ...

    def other(*_: object) -> None: ...

    net = nn.Linear(2, 2)
    for hook in (ours, other):
        net.register_load_state_dict_pre_hook(hook)
        net.register_state_dict_post_hook(hook)
    remove_state_hooks(net, (ours,))
    assert len(net._load_state_dict_pre_hooks) == len(net._state_dict_hooks) == 1
    assert other in net._state_dict_hooks.values()


def test_a_modules_own_hooks_are_given_if_asked_for() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    assert list(hook_tables(layer)) == []
    assert [place for place, _ in hook_tables(layer, own=True)] == [(0, "_forward_hooks")]
