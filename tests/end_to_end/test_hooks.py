"""Hooks of modules run as on the unsharded model, whether they were there before `compile` or come later."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as all_modules

import tpfx
from tests.support.models import inputs, tiny
from tests.support.nets import Net
from tests.support.sharded import whole

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
Log = list[Any]
Register = Callable[[Any, Log], Any]


def _noted(tensor: torch.Tensor) -> torch.Tensor:
    return whole(tensor.detach()).clone()


def _replaces(model: Any, log: Log) -> Any:
    return model.norm.register_forward_hook(lambda module, args, out: log.append(_noted(out)) or out * 2)


def _reads(model: Any, log: Log) -> Any:
    def read(module: nn.Module, args: Any, out: torch.Tensor) -> None:
        log.append(torch.tensor([out.mean().item(), float(out.detach().cpu().numpy().sum())]))
        print(out, file=io.StringIO())

    return model.norm.register_forward_hook(read)


def _keeps(model: Any, log: Log) -> Any:
    return model.norm.register_forward_hook(lambda module, args, out: log.append(out))


def _before(model: Any, log: Log) -> Any:
    def double(module: nn.Module, args: Any, kwargs: Any) -> Any:
        log.append(args[0].detach().mean())
        return (args[0] * 2,), kwargs

    return model.down.register_forward_pre_hook(double, with_kwargs=True)


def _backward(model: Any, log: Log) -> Any:
    def triple(module: nn.Module, given: Any, wanted: Any) -> Any:
        log.append(wanted[0].mean())
        return tuple(None if one is None else one * 3 for one in given)

    return model.norm.register_full_backward_hook(triple)


def _before_backward(model: Any, log: Log) -> Any:
    return model.down.register_full_backward_pre_hook(
        lambda module, wanted: log.append(wanted[0].mean()) or (wanted[0] * 3,)
    )


def _of_the_model(model: Any, log: Log) -> Any:
    return model.register_forward_hook(lambda module, args, out: log.append(out.detach()) or out * 2)


def _of_all_modules(model: Any, log: Log) -> Any:
    return all_modules.register_module_forward_hook(lambda module, args, out: log.append(out.detach().mean()))


KINDS = (_replaces, _reads, _keeps, _before, _backward, _before_backward, _of_the_model, _of_all_modules)


def _called(model: nn.Module, register: Register, late: bool, compiled: bool) -> tuple[Log, Log]:
    """What the model gives and what the hooks have seen, with a hook and after it has been taken out."""
    log: Log = []
    given: Log = []
    handle = None if late else register(model, log)
    if compiled:
        tpfx.compile(model, ["cpu", "cpu"])
    for step in range(4):
        if step == 1 and late:
            handle = register(model, log)
        if step == 3:
            handle.remove()
        result = model(X)
        model.zero_grad()
        result.square().mean().backward()
        given += [_noted(result), *(_noted(weight.grad) for weight in model.parameters())]
    return given, [_noted(seen) for seen in log]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("register", KINDS)
def test_hooks_run_and_change_what_they_see(register: Register, late: bool) -> None:
    want = _called(Net(), register, late, compiled=False)
    got = _called(Net(), register, late, compiled=True)
    torch.testing.assert_close(got, want)
    assert want[1], "the hook was called"


@pytest.mark.parametrize("late", [False, True])
def test_hooks_of_a_weight_change_its_gradient_until_they_are_taken_out(late: bool) -> None:
    gradients: list[Log] = []
    for compiled in (False, True):
        model, log = Net(), Log()
        if compiled and late:
            tpfx.compile(model, ["cpu", "cpu"])
        handle = model.up.weight.register_hook(lambda gradient: gradient * 3)
        model.down.weight.register_post_accumulate_grad_hook(lambda weight, log=log: log.append(1))
        if compiled and not late:
            tpfx.compile(model, ["cpu", "cpu"])
        for _ in range(2):
            model.zero_grad()
            model(X).square().mean().backward()
            log += [_noted(weight.grad) for weight in model.parameters()]
            handle.remove()
        gradients.append(log)
    torch.testing.assert_close(*gradients)


def test_several_hooks_run_in_order() -> None:
    log: Log = []
    model = tpfx.compile(Net(), ["cpu"] * 3)
    model(X)
    for name in ("first", "second"):
        model.up.register_forward_hook(lambda module, args, out, name=name: log.append(name))
    model.up.register_forward_hook(lambda module, args, out: log.append("zeroth"), prepend=True)
    model(X)
    assert log == ["zeroth", "first", "second"]


def test_hooks_come_and_go_without_an_end_of_graphs() -> None:
    model, reference = tpfx.compile(Net(), ["cpu", "cpu"]), Net()
    with torch.no_grad():
        model(X)
        handle = model.up.register_forward_hook(lambda module, args, out: out * 2)
        model(X), model(X)
        handle.remove()
        model(X)
        assert tpfx.report(model).graphs == 2
        with pytest.warns(UserWarning, match=r"Net\.forward has been captured again 8 times.*other hooks"):
            for factor in range(9):  # Dynamo captures a function eight times at most
                handles = [
                    each.up.register_forward_hook(lambda module, args, out, factor=factor: out * factor)
                    for each in (model, reference)
                ]
                torch.testing.assert_close(model(X), reference(X))
                for handle in handles:
                    handle.remove()
    assert not tpfx.report(model).whole_calls


def test_a_copy_has_hooks_of_its_own() -> None:
    model, log = tpfx.compile(Net(), ["cpu", "cpu"]), []
    twin = copy.deepcopy(model)
    twin.up.register_forward_hook(lambda module, args, out: log.append("twin"))
    model(X), twin(X)
    assert log == ["twin"]


@pytest.mark.slow
def test_activations_of_a_language_model_are_seen_while_it_generates() -> None:
    model, reference = (tiny("llama") for _ in range(2))
    given = inputs(model)["input_ids"]
    seen: dict[str, dict[int, Any]] = {"split": {}, "whole": {}}
    tpfx.compile(model, ["cpu", "cpu"])
    results = []
    for name, each in (("whole", reference), ("split", model)):
        results.append(each.generate(given, max_new_tokens=3, do_sample=False))
        for at, layer in enumerate(each.model.layers):
            layer.register_forward_hook(
                lambda module, args, out, at=at, log=seen[name]: log.__setitem__(at, out)
            )
        results.append(each.generate(given, max_new_tokens=3, do_sample=False))
    assert results[0].tolist() == results[2].tolist() and results[1].tolist() == results[3].tolist()
    torch.testing.assert_close({at: whole(one) for at, one in seen["split"].items()}, seen["whole"])
