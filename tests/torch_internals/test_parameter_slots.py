"""Where modules keep what is called in their place."""

from __future__ import annotations

import copy

import torch

from tpfx.torch_internals.parameter_slots import CALLED_INSTEAD, with_hooks


def test_what_is_called_instead_of_a_module_takes_the_place_of_its_hooks_too() -> None:
    layer, seen = torch.nn.Linear(2, 2), []
    layer.register_forward_hook(lambda *_: seen.append("hook"))
    vars(layer)[CALLED_INSTEAD] = lambda x: seen.append("instead")
    layer(torch.ones(2))
    with_hooks(layer, torch.ones(2))
    assert seen == ["instead", "hook"]
    assert CALLED_INSTEAD not in vars(copy.deepcopy(layer))
