"""What a backward pass says of itself while it runs."""

from __future__ import annotations

import gc
from typing import Any

import torch

from tpfx.torch_internals import backward_pass
from tpfx.torch_internals.backward_pass import ASKED, hooks_on, note_what_is_asked, passes_through


def leaf() -> torch.Tensor:
    return torch.ones(2, requires_grad=True)


def test_a_backward_says_whether_another_one_may_come() -> None:
    x, seen = leaf(), []
    y = x.exp()
    y.register_hook(lambda _: seen.append(backward_pass.keeps_graph()))
    y.sum().backward(retain_graph=True)
    y.sum().backward()
    assert seen == [True, False]


def test_each_pass_has_a_number_and_says_what_it_goes_through() -> None:
    x, z, seen = leaf(), leaf(), []
    inner, other = x.exp(), z.sin()
    y = inner * other

    def see(_: torch.Tensor) -> None:
        nodes = inner.grad_fn, other.grad_fn
        seen.append((backward_pass.current_pass(), [passes_through(node) for node in nodes if node]))

    y.register_hook(see)
    y.sum().backward(retain_graph=True)
    torch.autograd.grad(y.sum(), x, retain_graph=True)
    torch.autograd.grad(y.sum(), inner)
    assert [ways for _, ways in seen] == [[True, True], [True, False], [True, False]]
    assert len({number for number, _ in seen}) == 3


def test_hooks_are_known_of_a_tensor_that_has_been_let_go() -> None:
    y = leaf().exp()
    table = hooks_on(y)
    assert not table()
    handle = y.register_hook(lambda gradient: gradient)
    z = y.sum()
    del y
    gc.collect()
    assert len(table()) == 1
    handle.remove()
    assert not table()
    del z
    assert table() is None


def test_what_is_asked_for_is_known_while_a_backward_runs() -> None:
    x, seen = leaf(), []
    inner = x.exp()
    y = inner.sin()
    y.register_hook(lambda _: seen.append(ASKED.of(inner.grad_fn)))
    edge: Any = torch.autograd.graph.get_gradient_edge(inner)
    undo = note_what_is_asked().install()
    for inputs in ([inner], [x], [x, edge]):
        torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    y.sum().backward(inputs=[inner], retain_graph=True)
    y.sum().backward(retain_graph=True)
    undo()
    assert seen == [True, False, True, True, False]
    assert not ASKED.of(inner.grad_fn)


def test_hooks_that_take_what_is_saved_are_known_also_in_a_recomputation() -> None:
    seen = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        seen.append(backward_pass.saved_by_others())
        return x.exp()

    x = torch.ones(2, requires_grad=True)
    torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert seen == [True, True] and not backward_pass.saved_by_others()
