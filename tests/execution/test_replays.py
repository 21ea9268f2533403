"""Runs that are recorded and replayed, by a recorder that minds what a capture on a GPU minds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch

import tpfx
from tests.support.models import inputs, tiny
from tests.support.tape import Tapes
from tpfx.execution import replays
from tpfx.execution.ranks import Ranks
from tpfx.frontend import session
from tpfx.runtime.mesh import Mesh
from tpfx.runtime.thread_runtime import Runtime

CPUS = ["cpu", "cpu"]


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tapes]:
    """The recorders of the models that a test compiles."""
    made: list[Tapes] = []

    def recorder_for(mesh: Mesh) -> Tapes:
        made.append(Tapes(mesh))
        return made[-1]

    monkeypatch.setattr(session, "recorder_for", recorder_for)
    return made


def compiled(model: torch.nn.Module, devices: list[str] = CPUS) -> Any:
    return tpfx.compile(model, devices, mode="reduce-overhead", device_compiler="eager")


class Writes(torch.nn.Module):
    """Writes heads into a cache that the model keeps or the caller, counts, and returns a size too."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(16, 32, bias=False)
        self.back = torch.nn.Linear(32, 16)

    def forward(self, x: torch.Tensor, cache: Any, at: torch.Tensor, count: torch.Tensor) -> Any:
        heads = self.project(x)
        cache.index_copy_(1, at, heads)
        count.add_(1)
        return self.back(torch.relu(cache)), x.shape[0] + 1


def pair(devices: list[str] = CPUS) -> tuple[Writes, Any]:
    plain = Writes()
    split = Writes()
    split.load_state_dict(plain.state_dict())
    return plain, compiled(split, devices)


def step(plain: Any, split: Any, at: int, state: list[tuple[Any, Any]], rows: int = 2) -> torch.Tensor:
    """One call of both, compared; what the split one has returned."""
    x, place = torch.randn(rows, 1, 16), torch.tensor([at])
    with torch.no_grad():
        (right, size), (found, same) = (
            model(x, cache, place, count) for model, (cache, count) in zip((plain, split), state, strict=True)
        )
    torch.testing.assert_close(found, right)
    assert size == same
    torch.testing.assert_close(state[1], state[0])
    return found


def fresh(rows: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.zeros(rows, 6, 32), torch.tensor(0)) for _ in range(2)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_second_run_is_recorded_and_replayed(count: int, tapes: list[Tapes]) -> None:
    plain, split = pair(["cpu"] * count)
    state = fresh()
    earlier = [(found := step(plain, split, at, state), found.clone()) for at in range(5)]
    assert len(tapes[0].made) == 1 and tapes[0].replays == 4
    for found, was in earlier:  # a replay writes over nothing that the caller has
        assert torch.equal(found, was)
    report = tpfx.report(split)
    assert report.recordings == 1 and not report.not_recorded
    assert "recorded, to be replayed" in str(report)


def test_other_sizes_have_a_recording_of_their_own(tapes: list[Tapes]) -> None:
    plain, split = pair()
    states = {rows: fresh(rows) for rows in (2, 3)}
    for at in range(4):
        for rows, state in states.items():
            step(plain, split, at, state, rows)
    assert tapes[0].replays == 6


def test_other_weights_are_recorded_anew(tapes: list[Tapes]) -> None:
    plain, split = pair()
    state = fresh()
    for at in range(3):
        step(plain, split, at, state)
    with torch.no_grad():
        for model in (plain, split):
            model.back.bias.add_(1.0)  # in place: the recording reads it
    step(plain, split, 3, state)
    assert len(tapes[0].made) == 1
    new = {name: torch.randn_like(value) for name, value in plain.state_dict().items()}
    plain.load_state_dict(new, assign=True)
    split.load_state_dict({name: value.clone() for name, value in new.items()}, assign=True)
    for at in range(3):
        step(plain, split, at, state)


def test_tokens_with_a_static_cache(tapes: list[Tapes]) -> None:
    plain, split = tiny("llama", num_hidden_layers=1), compiled(tiny("llama", num_hidden_layers=1))
    given = inputs(plain)
    for wanted in ({}, {"num_beams": 2}):
        arguments = {"max_new_tokens": 6, "min_new_tokens": 6, "cache_implementation": "static", **wanted}
        for _ in range(2):
            assert torch.equal(split.generate(**given, **arguments), plain.generate(**given, **arguments))
    assert tapes[0].replays >= 8  # of the steps of greedy texts: beams, and each new cache, lie elsewhere
    assert len(tapes[0].made) < tapes[0].replays


def test_caches_that_grow_are_not_recorded(tapes: list[Tapes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "REMEMBERED", 4)
    plain, split = tiny("llama", num_hidden_layers=1), compiled(tiny("llama", num_hidden_layers=1))
    given = inputs(plain)
    arguments = {"max_new_tokens": 8, "min_new_tokens": 8}
    assert torch.equal(split.generate(**given, **arguments), plain.generate(**given, **arguments))
    assert not tapes[0].made
    assert "its sizes, or where its state lies, are others each time" in tpfx.report(split).not_recorded
    assert "not recorded" in str(tpfx.report(split))


class Moves(torch.nn.Module):
    """Returns its state, which the next call takes: it lies elsewhere each time."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = torch.tanh(self.into(x) + state)
        return self.out(state), state


def test_state_that_moves_is_copied(tapes: list[Tapes]) -> None:
    torch.manual_seed(0)
    plain = Moves()
    split = Moves()
    split.load_state_dict(plain.state_dict())
    split = compiled(split)
    states = [torch.zeros(2, 32), torch.zeros(2, 32)]
    with torch.no_grad():
        for _ in range(8):
            x = torch.randn(2, 16)
            (right, states[0]), (found, states[1]) = (
                model(x, state) for model, state in zip((plain, split), states, strict=True)
            )
            torch.testing.assert_close(found, right)
    assert tapes[0].replays >= 4 and len(tapes[0].made) <= 2


class Reads(torch.nn.Module):
    """What it returns has as many rows as its values say."""

    def __init__(self) -> None:
        super().__init__()
        self.into = torch.nn.Linear(16, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.into(x)[x[:, 0] > 0]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Reads(), "the host reads values"),
        (torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Dropout(0.5)), "draws random numbers"),
    ],
)
def test_what_cannot_be_recorded_runs_and_is_named(
    model: torch.nn.Module, why: str, tapes: list[Tapes]
) -> None:
    split = compiled(model)
    with torch.no_grad():
        for _ in range(3):
            split(torch.randn(4, 16))
    assert not any(recorder.made for recorder in tapes)
    assert [why in one for one in tpfx.report(split).not_recorded] == [True]


def test_a_failed_recording_leaves_the_run_as_it_was(
    tapes: list[Tapes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "obstacle", lambda graph, devices: None)
    split = compiled(Reads())
    x = torch.randn(4, 16)
    with torch.no_grad():
        right = [split(x) for _ in range(3)]
    assert torch.equal(right[0], right[1]) and torch.equal(right[0], right[2])
    assert any("not permitted" in why for why in tpfx.report(split).not_recorded)


def test_nothing_is_replayed_while_the_caller_records(tapes: list[Tapes]) -> None:
    plain, split = pair()
    state = fresh()
    for at in range(3):
        step(plain, split, at, state)
    before = tapes[0].replays
    tapes[0].free = False
    step(plain, split, 3, state)
    assert tapes[0].replays == before


@pytest.mark.parametrize("count", [1, 2])
def test_inference_mode_and_no_grad_in_turns(count: int, tapes: list[Tapes]) -> None:
    plain, split = pair(["cpu"] * count)
    state = fresh()
    for at in range(6):
        with torch.inference_mode(at % 2 == 0):
            step(plain, split, at, state)
    assert [tape.replays for tape in tapes[0].made] == [2, 2]


def test_threads_may_call_at_once(tapes: list[Tapes]) -> None:
    split, plain = compiled(torch.nn.Linear(16, 32)), torch.nn.Linear(16, 32)
    plain.load_state_dict(tpfx.full_state_dict(split))
    wrong = list[torch.Tensor]()

    @torch.no_grad()
    def call() -> None:
        for _ in range(30):
            x = torch.randn(4, 16)
            found = split(x)
            if not torch.allclose(found, plain(x), atol=1e-5):
                wrong.append(found)

    call()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong and tapes[0].replays == 119


def test_gradients_are_not_recorded(tapes: list[Tapes]) -> None:
    split = compiled(torch.nn.Linear(16, 32))
    for _ in range(3):
        split(torch.randn(4, 16)).sum().backward()
    assert not tapes[0].made
    assert list(tpfx.report(split).not_recorded) == ["it is part of a step that computes gradients"]


def test_the_mode_is_checked_and_the_cpu_named() -> None:
    with pytest.raises(tpfx.TpfxError, match="'default' or 'reduce-overhead'"):
        tpfx.compile(torch.nn.Linear(16, 32), CPUS, mode="max-autotune")
    split = tpfx.compile(torch.nn.Linear(16, 32), CPUS, mode="reduce-overhead")
    with torch.no_grad():
        split(torch.randn(4, 16))
    assert list(tpfx.report(split).not_recorded) == ["cpu devices run no CUDA graphs"]


Function = Callable[..., list[Any]]


def alone(
    function: Function, weights: Collection[int] = (), written: Collection[int] = (), several: bool = False
) -> Any:
    """Replays of a function on one rank, their recorder, and what they noted."""
    mesh = Mesh((torch.device("cpu"),))
    runtime, recorder, notes = Runtime(mesh), Tapes(mesh, several), list[str | None]()
    ranks = Ranks(runtime, [], [function])
    run = replays.Replays(recorder, notes.append, ranks, weights, written)

    def call(*args: Any, state: Collection[int] = ()) -> Any:
        columns = [arg if isinstance(arg, tuple) else (arg,) for arg in args]
        return run(columns, dict.fromkeys(state, 1))[0][0]

    return call, recorder, notes


def test_numbers_and_sizes_tell_runs_apart() -> None:
    call, recorder, _ = alone(lambda x, by: [x * by])
    for by in (2, 3, 1, True, 1.0):
        for _ in range(3):
            x = torch.arange(6).view(2, 3)
            assert torch.equal(call(x, by), x * by) and call(x, by).dtype == (x * by).dtype
    assert len(recorder.made) == 5
    for rows in (2, 4, 2, 4, 2, 4):
        x = torch.randn(rows, 3)
        assert torch.equal(call(x, 2), x * 2)
    assert len(recorder.made) == 7 and recorder.made[-1].replays == 2


def test_strides_are_kept() -> None:
    call, recorder, _ = alone(lambda x: [x + 1])
    for x in (torch.randn(4, 6).t(), torch.randn(4, 1).expand(4, 3), torch.randn(8, 6)[::2, 1:3]):
        for _ in range(3):
            x = x + torch.zeros_like(x) if x.is_contiguous() else x
            assert torch.equal(call(x), x + 1) and call(x).stride() == (x + 1).stride()
    assert recorder.replays >= 6


def test_results_that_share_memory_do_so_for_the_caller() -> None:
    mesh = Mesh((torch.device("cpu"),))

    def function(x: torch.Tensor) -> list[Any]:
        made = x + 1
        return [made, made[1], made.t(), x.new_empty(0), 7, x * 2]

    ranks, recorder = Ranks(Runtime(mesh), [], [function]), Tapes(mesh)
    run = replays.Replays(recorder, lambda why: None, ranks, [], [])
    for _ in range(3):
        x = torch.randn(2, 3)
        whole, row, turned, _, seven, other = run([[x]], {})[0]
        whole.add_(1)
        assert torch.equal(row, x[1] + 2) and torch.equal(turned, (x + 2).t()) and turned.stride() == (1, 3)
        assert seven == 7 and torch.equal(other, x * 2)
    assert recorder.replays == 2


def test_weights_elsewhere_are_recorded_anew() -> None:
    call, recorder, notes = alone(lambda x, weight: [x @ weight], weights=[1])
    x = torch.randn(2, 3)
    for made in range(1, replays.KEPT + 3):
        held = (torch.randn(3, 3),)
        assert torch.equal(call(x, held), x @ held[0])
        assert torch.equal(call(x, held), x @ held[0])
        assert len(recorder.made) == made
    for _ in range(replays.KEPT + 2):
        held = (torch.randn(3, 3),)
        assert torch.equal(call(x, held), x @ held[0])
    assert len(recorder.made) < 2 * replays.KEPT + 3 and "elsewhere each time" in str(notes[-1])


def test_state_that_moves_once_is_copied_from_then_on() -> None:
    call, recorder, _ = alone(lambda state: [state * 2])
    states = [torch.randn(3) for _ in range(4)]
    for state in (states[0], *states, *states):
        assert torch.equal(call(state, state=[0]), state * 2)
    assert [tape.reads(states[0]) for tape in recorder.made] == [True, False]
    call, recorder, _ = alone(lambda state: [state * 2])
    for at in range(5):
        states[0].fill_(at)
        assert torch.equal(call(states[0], state=[0]), states[0] * 2)
    assert [tape.reads(states[0]) for tape in recorder.made] == [True]


def test_state_that_is_written_is_kept_by_nobody() -> None:
    call, _, _ = alone(lambda state: [state.add_(1) * 2], written=[0])
    for _ in range(3):
        state = torch.zeros(3)
        for at in range(1, 5):
            assert torch.equal(call(state, state=[0]), torch.full((3,), 2.0 * at))
            assert torch.equal(state, torch.full((3,), float(at)))
    square = torch.randn(3, 3)
    for state in (square, square, square.t(), square.t(), square):
        assert torch.equal(call(state, state=[0]), state * 2)


def test_processes_tell_state_by_what_it_is_not_by_where_it_lies() -> None:
    """Where one process finds memory again, another may not."""
    memory = torch.zeros(2, 3)
    call, recorder, _ = alone(lambda state: [state + 1], several=True)
    state, same_place = memory[0], memory[0]
    for value in (state, state, state, same_place, same_place):
        assert torch.equal(call(value, state=[0]), value + 1)
    assert [tape.reads(state) for tape in recorder.made] == [True, False]
    call, recorder, _ = alone(lambda state: [state.add_(1) * 2], written=[0], several=True)
    state, other = torch.zeros(3), torch.zeros(3)
    for at in range(1, 4):
        assert torch.equal(call(state, state=[0]), torch.full((3,), 2.0 * at))
    state.set_(other)  # type: ignore[call-overload]
    for at in range(1, 4):
        assert torch.equal(call(state, state=[0]), torch.full((3,), 2.0 * at))
    assert len(recorder.made) == 2
