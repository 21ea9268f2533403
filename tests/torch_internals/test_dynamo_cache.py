"""What Dynamo keeps of the graphs of a backend, until it is told to forget them."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import convert_frame, eval_frame

from tests.support.sharded import PLACEMENTS, SHAPE, sharded
from tpfx.frontend.effects import own_backend
from tpfx.sharded_tensor import ShardedTensor
from tpfx.torch_internals import dynamo, dynamo_cache


def every(entries: Sequence[Any]) -> list[bool]:
    """Keeps every guard."""
    return [True for _ in entries]


class Kept:
    """What compiled code holds."""


def test_forgotten_graphs_are_let_go_and_captured_again() -> None:
    kept: list[weakref.ref[Kept]] = []
    sizes: list[Callable[[], Any]] = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        held = Kept()
        kept.append(weakref.ref(held))
        sizes.append(dynamo_cache.sizes_now())
        return lambda *inputs: (held, module(*inputs))[1]

    def other(module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        kept.append(weakref.ref(module))
        return module.forward

    model = nn.Linear(2, 2)
    compiled = [dynamo_cache.compile_with(model.forward, one, False, every) for one in (backend, other)]
    x = torch.ones(3, 2)
    dynamo.mark_dynamic_sizes(x, {0})
    for call in compiled:
        assert isinstance(call(x), Tensor)
    known: dynamo_cache.Backend = backend
    dynamo_cache.forget_graphs(lambda made_by, _: made_by is known)
    assert sizes[0]() is not None
    dynamo_cache.forget_sizes(sizes)
    gc.collect(), gc.collect()
    assert [one() is None for one in kept] == [True, False]
    assert sizes[0]() is None
    compiled[0](x)
    assert len(kept) == 3
    compiled[1](x)
    assert len(kept) == 3


def test_what_is_in_place_for_captures_is_there_for_those_of_some_backends_alone() -> None:
    """What it changes of how Dynamo captures goes for the capture that it is there for."""
    seen: list[str] = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        seen.append(
            "rows" if module.graph.find_nodes(op="call_function", target=torch.nonzero) else "no rows"
        )
        return module.forward

    def other(module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        return backend(module, _)

    def is_own(by: Any) -> bool:
        return by is backend

    @contextmanager
    def around() -> Iterator[None]:
        undo = dynamo_cache.capture_for(is_own, (), lambda *_: None).install()
        seen.append("in place")
        yield
        seen.append("gone")
        undo()

    def rows(x: Tensor) -> Tensor:
        return torch.nonzero(x + 1) * 2

    undo = dynamo_cache.in_place_for_captures(is_own, around).install()
    before = convert_frame._compile
    try:
        torch.compile(rows, backend=backend)(torch.ones(2))
        torch.compile(rows, backend=other)(torch.ones(2))
        assert convert_frame._compile is before
    finally:
        undo()
    assert seen[:3] == ["in place", "rows", "gone"] and set(seen[3:]) == {"no rows"}


def test_outside_of_a_capture_there_are_no_sizes() -> None:
    assert dynamo_cache.sizes_now()() is None


def test_dynamo_does_not_keep_the_backend() -> None:
    def backend(module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        return module.forward

    before = len(eval_frame.cached_backends)
    dynamo_cache.compile_with(nn.Linear(2, 2).forward, backend, False, every)
    assert len(eval_frame.cached_backends) == before


def test_a_property_may_return_another_object_each_time() -> None:
    """Dynamo makes the guards a second time where some may be left out; torch 2.12 compares the objects."""
    seen: list[Any] = []

    class View(Sequence[float]):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: Any) -> Any:
            if index > 0:
                raise IndexError
            return 2.0

    class Config:
        def __getattribute__(self, name: str) -> Any:
            return super().__getattribute__(name)

        @property
        def view(self) -> View:
            seen.append(View())
            return seen[-1]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = Config()

        def forward(self, x: Tensor) -> Tensor:
            for shift in self.config.view:
                x = x + shift
            return x

    def backend(module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        return module.forward

    compiled = dynamo_cache.compile_with(Model().forward, backend, True, every)
    assert compiled(torch.ones(2)).tolist() == [3.0, 3.0] and seen


def test_calls_of_whole_graphs_in_two_threads_leave_captures_as_they_are() -> None:
    """While one runs, and after both: what is called after a graph break is captured."""
    ends = {name: threading.Event() for name in ("first", "second")}
    inside = threading.Barrier(3)

    def backend(module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        return module.forward

    def waiting(name: str) -> Callable[..., Any]:
        def run(module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
            def wait(*inputs: Any) -> Any:
                inside.wait(30)
                assert ends[name].wait(30)
                return module.forward(*inputs)

            return wait

        return run

    x = torch.ones(2)
    calls = [dynamo_cache.compile_with(torch.nn.Tanh().forward, waiting(name), True, every) for name in ends]

    def captured() -> int:
        """How many graphs are captured of a function with a break in what it calls."""
        graphs: list[Any] = []

        def counted(module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
            graphs.append(module)
            return module.forward

        def inner(x: Tensor) -> Tensor:
            y = x * 2
            torch._dynamo.graph_break()
            return y + 1

        torch._dynamo.reset_code(inner.__code__)
        torch.compile(lambda x: inner(x), backend=counted)(x)
        return len(graphs)

    before = captured()
    threads = [threading.Thread(target=call, args=(x,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    inside.wait(30)
    during = captured()
    for thread, end in zip(threads, ends.values(), strict=True):  # the one that came first ends first
        end.set()
        thread.join(30)
    assert (before, during, captured()) == (2, 2, 2)


def test_guards_are_on_what_has_taken_a_weights_place() -> None:
    model = nn.Linear(2, 2)
    original, other = model.weight, nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        model.weight = other
        dynamo_cache.guard_on_successors([id(original)])
        return lambda *inputs: (inputs[0],)

    torch._dynamo.reset()
    compiled = dynamo_cache.compile_with(lambda: model.weight * 2, backend, True, every)
    assert compiled() is not None and model.weight is other  # it does not fail on its own guards


@pytest.mark.parametrize("ours", [True, False])
def test_limits_of_captures_are_those_of_other_backends_alone(ours: bool) -> None:
    made: list[int] = []
    told: list[Any] = []

    def backend(module: torch.fx.GraphModule, examples: Any) -> Callable[..., Any]:
        made.append(len(examples))
        return module.forward

    def tell(code: CodeType, variables: Mapping[str, Any], failure: str) -> None:
        told.append((code.co_name, variables["by"], "== 'a'" in failure or "== 'ab" in failure))

    def scaled(x: Tensor, by: str) -> Tensor:
        return x * len(by)

    undo = dynamo_cache.capture_for(lambda one: ours and one is backend, (), tell).install()
    try:
        compiled = torch.compile(scaled, backend=backend)
        with torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=2):
            for by in ("a", "ab", "abc", "abcd"):
                assert compiled(torch.ones(3), by)[0] == len(by)
    finally:
        assert undo()
    assert len(made) == (4 if ours else 1)
    assert told == [("scaled", by, True) for by in ("ab", "abc", "abcd") if ours]


@pytest.mark.parametrize(("enabled", "ours"), [(True, True), (True, False), (False, True)])
def test_the_collector_waits_while_our_backends_capture(enabled: bool, ours: bool) -> None:
    waits: list[bool] = []

    def backend(module: torch.fx.GraphModule, examples: Any) -> Callable[..., Any]:
        waits.append(not gc.isenabled())
        if len(waits) > 1:
            raise MemoryError
        return module.forward

    undo = dynamo_cache.capture_for(lambda one: ours and one is backend, (), print).install()
    (gc.enable if enabled else gc.disable)()
    try:
        compiled = torch.compile(lambda x: x * 2, backend=backend)
        compiled(torch.ones(3))
        with pytest.raises(torch._dynamo.exc.BackendCompilerFailed):
            compiled(torch.ones(3, 3))
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
        assert undo()
    assert waits == [ours or not enabled] * 2


@pytest.mark.parametrize("ours", [True, False])
def test_tensors_of_a_kind_are_in_graphs_of_our_backends_alone(ours: bool) -> None:
    taken: list[type] = []

    def backend(module: torch.fx.GraphModule, examples: Any) -> Callable[..., Any]:
        taken.extend(type(one) for one in examples)
        return module.forward

    split = sharded(torch.arange(72.0).view(SHAPE), PLACEMENTS["rows"])
    if ours:
        own_backend(backend)  # models of other tests may have an effect in place that asks for it
    skipped = dynamo.skip_frames("tpfx").install()
    undo = dynamo_cache.capture_for(lambda one: ours and one is backend, (ShardedTensor,), print).install()
    try:
        compiled = torch.compile(lambda x, y: (x * 2, y + 1), backend=backend)
        doubled, more = compiled(split, torch.ones(2))
    finally:
        assert undo() and skipped()
    assert torch.equal(doubled.full(), split.full() * 2) and more.tolist() == [2, 2]
    assert (ShardedTensor in taken) == ours


def test_pythons_collector_waits() -> None:
    assert gc.isenabled()
    with dynamo_cache.collector_waiting():
        assert not gc.isenabled()
    assert gc.isenabled()
