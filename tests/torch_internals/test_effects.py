"""Nothing in torch is changed for good: what holds for the whole process holds while a model lives."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch.optim.optimizer import Optimizer

from tests.support.fresh_python import run
from tpfx.frontend.effects import Effects
from tpfx.torch_internals import effects
from tpfx.torch_internals.effects import Effect, Undo, before_every_step, before_export, step_runs
from tpfx.torch_internals.wrapper_subclass import BRANCHES_REFUSE

# What a process looks like: the names in torch's modules, its tables, its threads and groups.
SNAPSHOT = '''
import gc, sys, threading, warnings
import torch, torch.utils._foreach_utils
import torch._dynamo.trace_rules as trace_rules
import torch.optim.optimizer as optimizer
from torch._decomp import decomposition_table, meta_table
import torch._meta_registrations, torch._refs, torch._inductor.config, torch._dynamo.config
import torch.fx.experimental.symbolic_shapes, torch.distributed, torch.distributed.tensor
import torch.utils._pytree, torch.export._trace, torch.jit._script
torch.compile(lambda x: x + 1, backend="aot_eager")(torch.ones(2))   # torch's own first time
torch.ops.aten.reshape.default, torch.ops.aten.squeeze.dims      # ops are there once they have been named

def kernels():
    for packet in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, packet)
        for name in packet.overloads() if isinstance(packet, torch._ops.OpOverloadPacket) else ():
            op = getattr(packet, name)
            yield str(op), dict(op.py_kernels)

def functions():
    """Every function and class in a module or class of torch, by name."""
    for name, module in sorted(sys.modules.items()):
        if name.split(".")[0] == "torch":
            for key, value in list(vars(module).items()):
                if callable(value):
                    yield f"{name}.{key}", value
                if isinstance(value, type) and value.__module__.split(".")[0] == "torch":
                    for inner, method in list(vars(value).items()):
                        if callable(method):
                            yield f"{value.__module__}.{value.__qualname__}.{inner}", method

def snapshot():
    gc.collect(); gc.collect()
    return {
        "functions": dict(functions()),
        "kernels": dict(kernels()),
        "decompositions": dict(decomposition_table),
        "metas": dict(meta_table),
        "hooks": (dict(optimizer._global_optimizer_pre_hooks), dict(optimizer._global_optimizer_post_hooks)),
        "foreach": (list(optimizer._foreach_supported_types),
                    list(torch.utils._foreach_utils._foreach_supported_types)),
        "skipped": (list(trace_rules.SKIP_DIRS), trace_rules.SKIP_DIRS_RE.pattern),
        "settings": {name: getattr(torch._dynamo.config, name) for name in ("specialize_float", "allow_rnn",
                     "recompile_limit", "accumulated_recompile_limit")},
        "open": torch.fx.experimental._config.backed_size_oblivious,
        "callbacks": list(gc.callbacks),
        "data": vars(torch.Tensor).get("data"),
        "threads": sorted(one.name for one in threading.enumerate() if one.name.startswith("tpfx")),
        "distributed": torch.distributed.is_initialized(),
    }

def differ(one, two, key):
    """Of kernels, those that torch adds when an op is first used do not count, but of the ops named above."""
    named = ("aten.reshape.default", "aten.squeeze.dims", "aten.linear.default")
    if isinstance(one, dict) and key not in named:
        return any(two.get(kernel) is not one[kernel] for kernel in one)
    return one is not two and one != two

def changed(before, now):
    """What differs, a word each; modules that were imported meanwhile do not count."""
    found = []
    for what in before:
        one, two = before[what], now[what]
        if isinstance(one, dict):
            found += [f"{what}: {key}" for key in one if key in two and differ(one[key], two[key], key)]
            new = set(two) - set(one) if what in ("metas", "decompositions", "settings") else ()
            found += [f"{what}: {key}" for key in new]
        elif one != two:
            found.append(what)
    return found

class Net(torch.nn.Module):
    def __init__(self, device=None):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 24, device=device), torch.nn.Linear(24, 8, device=device)

    def forward(self, x):
        return self.down(torch.relu(self.up(x).squeeze(1)))

X = torch.randn(4, 1, 8)
untouched = snapshot()
assert changed(untouched, snapshot()) == []
import tpfx
'''

CHANGED = {"decompositions: aten.squeeze.dims", "kernels: aten.squeeze.dims", "kernels: aten.reshape.default"}
CHANGED |= {"hooks", "foreach", "skipped", "functions: torch._dynamo.convert_frame._compile"}
EXPORTS = {"torch.jit.trace_module", "torch.jit._trace.trace_module", "torch.jit._trace._trace_impl"}
EXPORTS |= {"torch.jit._script._script_impl", "torch.export._trace._export"}
GROUP = "torch.distributed.distributed_c10d.ProcessGroup"
SCATTERS = {f"{GROUP}.scatter", f"{GROUP}.reduce_scatter"}
CHANGED |= (
    {"data"}
    | {f"functions: {name}" for name in EXPORTS | SCATTERS}
    | {"functions: torch.nn.utils.parametrize._maybe_set"}
    | {"functions: torch.nn.parallel.data_parallel.DataParallel.__init__"}
)
CHANGED |= {"functions: torch.autograd._engine_run_backward", "kernels: aten.linear.default"}
CHANGED |= {
    "functions: torch._dynamo.variables.higher_order_ops.get_tensor_storages",
    "functions: torch._ops.HigherOrderOperator.__call__",
}
SIZES = ("add", "sub", "mul", "eq", "ne", "ge", "gt", "le", "lt", "sym_max", "sym_min")
CHANGED |= {f"functions: torch.fx.experimental.sym_node.SymNode._{name}" for name in SIZES}
if BRANCHES_REFUSE:  # torch before 2.13
    CHANGED |= {
        "functions: torch._higher_order_ops.utils._collect_fake_inputs",
        "metas: aten._transformer_encoder_layer_fwd.default",
    }


def test_importing_and_planning_change_nothing_and_start_nothing() -> None:
    code = """
print(changed(untouched, snapshot()))
plan = tpfx.plan(Net("meta"), 2, example_inputs=(torch.ones(4, 1, 8, device="meta"),))
assert plan.weights
now = snapshot()
print(changed(untouched, now), now["threads"], now["distributed"])
"""
    assert run(SNAPSHOT + code).splitlines() == ["[]", "[] [] False"]


DOORS = {
    "compile": 'tpfx.compile(Net(), ["cpu", "cpu"])',
    "backend": 'torch.compile(Net(), backend="tpfx", options={"devices": ["cpu", "cpu"]})',
}


@pytest.mark.parametrize("door", DOORS)
def test_everything_is_back_when_the_last_model_has_gone(door: str) -> None:
    """Two models, of which one goes first; and a call of one token, which is captured with open batches.

    Who has named the backend keeps a function through which Dynamo captures, as it does without it.
    """
    code = f"""
def make():
    model = {DOORS[door]}
    model(X).sum().backward()
    with torch.no_grad():
        model(X), model(X[:1])
    return model

first, second = make(), make()
print(sorted(changed(untouched, snapshot())))
del first
print(sorted(changed(untouched, snapshot())))
del second
print(changed(untouched, snapshot()))
"""
    both, one, none = run(SNAPSHOT + code).splitlines()
    assert set(eval(both)) == CHANGED | {"threads"}
    assert one == both
    assert eval(none) == (["functions: torch._dynamo.convert_frame._compile"] if door == "backend" else [])


def test_a_compile_that_fails_leaves_nothing() -> None:
    code = """
model = Net()
try:
    tpfx.compile(model, ["cpu", "cpu"], example_inputs=(torch.ones(4, 7),))
except RuntimeError:
    print(changed(untouched, snapshot()))
"""
    assert run(SNAPSHOT + code).splitlines() == ["[]"]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_is_exported_is_what_is_said_to_be_plain() -> None:
    """Whatever the public name: each leads to a function that is replaced."""
    seen: list[type] = []

    def plain(model: Any) -> Any:
        seen.append(type(model))
        return torch.nn.ReLU() if isinstance(model, torch.nn.Tanh) else model

    undo, x = before_export(plain).install(), -torch.ones(2)
    try:
        for made in (
            torch.export.export(torch.nn.Tanh(), (x,)).module(),
            torch.jit.trace(torch.nn.Tanh(), x),
            torch.jit.trace_module(torch.nn.Tanh(), {"forward": x}),
            torch.jit.script(torch.nn.Tanh()),
        ):
            assert torch.equal(made(x), torch.zeros(2))
    finally:
        undo()
    assert torch.nn.Tanh in seen and torch.jit.trace(torch.nn.Tanh(), x)(x)[0] < 0


# The class itself.


def noted(log: list[str], name: str) -> Effect:
    def install() -> Undo:
        log.append(f"+{name}")
        return lambda: log.append(f"-{name}") is None

    return Effect(name, install)


class Owner:
    """Anything that can be held by a weak reference."""


def test_effects_are_made_once_and_undone_after_the_last_owner_in_reverse() -> None:
    log: list[str] = []
    made = Effects(noted(log, "a"), noted(log, "b"))
    first, second = Owner(), Owner()
    release = made.hold(first)
    made.hold(second)
    assert log == ["+a", "+b"] and made.in_place
    release()
    release()  # counts once
    del first
    assert log == ["+a", "+b"]
    del second
    assert log == ["+a", "+b", "-b", "-a"] and not made.in_place
    made.hold(Owner())
    assert log[4:] == ["+a", "+b", "-b", "-a"]


def test_an_effect_that_cannot_be_made_undoes_those_before_it() -> None:
    log: list[str] = []

    def refuse() -> Undo:
        raise LookupError("torch has changed")

    made = Effects(noted(log, "a"), Effect("refused", refuse))
    with pytest.raises(LookupError, match="torch has changed"):
        made.hold(Owner())
    assert log == ["+a", "-a"] and not made.in_place


def test_an_owner_that_goes_while_another_has_the_lock_is_counted_afterwards() -> None:
    """Garbage collection runs anywhere, in the thread that has the lock too."""
    log: list[str] = []
    made = Effects(noted(log, "a"))
    owner = Owner()
    made.hold(owner)
    with made._lock:
        del owner
    assert log == ["+a"]
    last = Owner()
    made.hold(last)
    assert log == ["+a"]
    del last
    assert log == ["+a", "-a"]


def test_many_threads_hold_and_release() -> None:
    log: list[str] = []
    made = Effects(noted(log, "a"))
    wrong = []

    def work() -> None:
        for _ in range(300):
            owner = Owner()
            made.hold(owner)
            if not made.in_place:
                wrong.append("not in place")
            del owner

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong and not made.in_place
    assert log == ["+a", "-a"] * (len(log) // 2)


def test_what_cannot_be_undone_now_is_undone_after_a_later_collection() -> None:
    answers = iter([False, False, True])
    asked: list[bool] = []

    def undo() -> bool:
        asked.append(next(answers))
        return asked[-1]

    callbacks = len(gc.callbacks)
    gc.disable()
    try:
        Effects(Effect("late", lambda: undo)).hold(Owner())
        assert asked == [False] and len(gc.callbacks) == callbacks + 1
        gc.collect()
        gc.collect()
        assert asked == [False, False, True] and len(gc.callbacks) == callbacks
    finally:
        gc.enable()


# Functions in tables.


def louder(f: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: f(text).upper()


def greet(text: str) -> str:
    return f"hello {text}"


def test_a_function_is_replaced_and_back() -> None:
    table: dict[str, Any] = {"greet": greet}
    undo = effects.replace_in(table, "greet", louder)
    assert table["greet"]("you") == "HELLO YOU" and table["greet"].__name__ == "greet"
    assert undo() and table == {"greet": greet}
    undo = effects.replace_in(table, "other", louder, absent=greet)
    assert table["other"]("you") == "HELLO YOU"
    assert undo() and table == {"greet": greet}


def test_what_others_have_put_over_ours_stays_and_passes_through() -> None:
    table: dict[str, Any] = {"greet": greet}
    undo = effects.replace_in(table, "greet", louder)
    ours = table["greet"]
    theirs = functools.wraps(ours)(lambda text: ours(text) + "!")
    table["greet"] = theirs
    assert table["greet"]("you") == "HELLO YOU!"
    assert undo()
    assert table["greet"] is theirs and table["greet"]("you") == "hello you!"


def test_a_method_is_replaced_and_back() -> None:
    class Greeter:
        def greet(self) -> str:
            return "hello"

    before = Greeter.greet
    undo = effects.replace_method(Greeter, "greet", louder)
    assert Greeter().greet() == "HELLO"
    assert undo() and Greeter.greet is before
    undo = effects.replace_method(Greeter, "greet", louder)
    theirs = lambda self: "theirs"  # noqa: E731
    Greeter.greet = theirs  # type: ignore[method-assign]
    assert undo() and Greeter.greet is theirs


def test_a_kernel_is_replaced_and_back() -> None:
    op: Any = torch.ops.aten.relu.default
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    before = dict(op.py_kernels)
    undo = effects.replace_kernel(op, key, lambda relu: lambda x: relu(x) + 1, absent=greet)
    assert op.py_kernels.keys() - before.keys() == {key}
    assert undo() and op.py_kernels == before


# Hooks of optimizers.


def test_a_hook_runs_before_steps_until_it_is_undone() -> None:
    seen: list[Optimizer] = []
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    undo = before_every_step(lambda one, *_: seen.append(one)).install()
    optimizer.step()
    assert seen == [optimizer]
    assert undo()
    optimizer.step()
    assert seen == [optimizer] and undo()


def test_a_hook_is_not_taken_out_while_torch_walks_over_the_hooks() -> None:
    """As if a model were collected within a step of another optimizer."""
    from torch.optim import optimizer as module

    before = dict(module._global_optimizer_pre_hooks)
    answers: list[bool] = []
    undo = before_every_step(lambda *_: answers.append(step_runs()) or answers.append(undo())).install()
    last = before_every_step(lambda *_: answers.append(True)).install()
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    optimizer.step()
    assert answers == [True, False, True] and not step_runs()
    optimizer.step()
    assert answers == [True, False, True, True]  # what stands there does nothing
    assert undo() and last() and module._global_optimizer_pre_hooks == before


def test_the_types_of_an_effect() -> None:
    undo: effects.Undo = before_every_step(lambda *_: None).install()
    assert undo()


def test_a_split_module_is_called_by_data_parallel_and_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def devices() -> str:
        raise AssertionError("DataParallel looks for devices")

    monkeypatch.setattr(
        import_module("torch.nn.parallel.data_parallel"), "_get_available_device_type", devices
    )
    split, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    undo = effects.not_replicated(lambda module: module is split).install()
    made, x = torch.nn.DataParallel(split), torch.ones(1, 2)
    assert made.module is split and torch.equal(made(x), split(x))
    with pytest.raises(AssertionError, match="looks for devices"):
        torch.nn.DataParallel(other)
    assert undo()
    with pytest.raises(AssertionError, match="looks for devices"):
        torch.nn.DataParallel(split)
