"""A rank fails inside a compiled graph: the caller learns what and where, and the next call works."""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tpfx
from tests.support.sharded import CPUS
from tpfx.rules.table import TABLE

HOURS = 7200.0  # where a rank that waits for its timeout is to be noticed, by the limit of each test
_serials = itertools.count()  # an op lives as long as the process: each test has one of its own


@dataclass
class Probe:
    """A custom op that every rank runs, since a rule knows it, and what it shall do on each."""

    name: str
    op: Callable[[Tensor], Tensor]
    executor: str = "native"  # the device compiler of its models
    on_rank: dict[int, Callable[[], object]] = field(default_factory=dict)


EXECUTORS = ["native", pytest.param("eager", marks=pytest.mark.slow)]


@pytest.fixture(params=EXECUTORS)
def probe(request: pytest.FixtureRequest) -> Iterator[Probe]:
    name = f"tpfx_faults::probe{next(_serials)}"

    @torch.library.custom_op(name, mutates_args=())
    def double(x: Tensor) -> Tensor:
        for rank, act in made.on_rank.items():
            if threading.current_thread().name.startswith(f"tpfx rank {rank} "):
                act()
        return x * 2

    double.register_fake(torch.empty_like)
    made = Probe(name, double, request.param)
    with rule_for_each(double):
        yield made
    made.on_rank.clear()


@contextmanager
def rule_for_each(*ops: Any) -> Iterator[None]:
    """Rules of ops, which go with the test."""
    before = dict(TABLE)
    for op in ops:
        tpfx.register_rule(op, "... -> ...")
    yield
    TABLE.clear()
    TABLE.update(before)


class Faulty(nn.Module):
    """A table, an op, and two layers with an all-reduce behind them."""

    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.op = op
        self.embed = nn.Embedding(32, 16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.op(self.embed(ids)))))


IDS = torch.arange(6).view(2, 3)


def compiled(probe: Probe, timeout: float = 20.0) -> tuple[Callable[[], Tensor], Faulty]:
    """The model over two devices, compiled and run once; and a call of it that checks the result."""
    torch.manual_seed(0)
    reference = Faulty(probe.op)
    torch.manual_seed(0)
    model = tpfx.compile(Faulty(probe.op), CPUS, timeout=timeout, device_compiler=probe.executor)

    def call() -> Tensor:
        with torch.no_grad():
            result = model(IDS)
            torch.testing.assert_close(result, reference(IDS))
        return result

    call()
    assert {collective.kind for collective in tpfx.report(model).collectives} >= {"all_reduce"}
    return call, model


def notes(caught: pytest.ExceptionInfo[BaseException]) -> str:
    return "\n".join(getattr(caught.value, "__notes__", ()))


class Broken(Exception):
    """What a rank raises."""


def broken() -> None:
    raise Broken("rank trouble")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_raises_is_named_and_the_others_go_on(probe: Probe, rank: int) -> None:
    call, model = compiled(probe, timeout=HOURS)
    probe.on_rank[rank] = broken
    for _ in range(2):
        with pytest.raises(Broken, match="rank trouble") as caught:
            call()
        assert f"on rank {rank} (cpu), in node probe" in notes(caught)
    probe.on_rank.clear()
    call()
    assert tpfx.report(model).graphs == 1


def test_a_result_that_cannot_be_gathered_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_link(*_: object) -> None:
        raise ConnectionError("the peer is gone")

    model = tpfx.compile(nn.Linear(4, 6, bias=False), CPUS)
    with torch.no_grad():
        expected = model(torch.ones(2, 4))
        with monkeypatch.context() as patch, pytest.raises(ConnectionError, match="gone") as caught:
            patch.setattr("tpfx.execution.program.whole_of", broken_link)
            model(torch.ones(2, 4))
        assert "on rank 0 (cpu), in node linear_default: gathering its shards" in notes(caught)
        torch.testing.assert_close(model(torch.ones(2, 4)), expected)


def test_an_id_outside_of_the_table_is_an_index_error(probe: Probe) -> None:
    call, model = compiled(probe)
    with torch.no_grad(), pytest.raises(IndexError, match="out of range") as caught:
        model(IDS + 99)
    assert "(cpu), in node embedding" in notes(caught)
    call()


def test_a_rank_that_never_arrives_is_a_timeout(probe: Probe) -> None:
    call, _ = compiled(probe, timeout=0.5)
    release = threading.Event()
    returned: list[bool] = []
    probe.on_rank[1] = lambda: returned.append(release.wait(200))
    try:
        with pytest.raises(tpfx.CollectiveTimeout, match=r"rank 1.*probe") as caught:
            call()
        assert not returned
        assert "on rank 0 (cpu)" in notes(caught)
        probe.on_rank.clear()
        call()  # with a new thread in the place of the stuck one
    finally:
        release.set()
    call()


def test_a_rank_that_is_late_is_waited_for(probe: Probe) -> None:
    call, _ = compiled(probe, timeout=20)
    probe.on_rank[1] = lambda: time.sleep(0.3)
    call()


def test_an_op_without_a_rule_runs_whole_and_is_reported() -> None:
    name = f"tpfx_faults::unknown{next(_serials)}"

    @torch.library.custom_op(name, mutates_args=())
    def unknown(x: Tensor) -> Tensor:
        return x * 2

    unknown.register_fake(torch.empty_like)
    _, model = compiled(Probe(name, unknown))
    report = tpfx.report(model)
    name = name.replace("::", ".")
    assert report.whole_ops == {f"{name}.default": 1}
    assert f"runs whole: {name}" in str(report)
    assert model.up.weight.placement, "what has a rule is split all the same"


def test_an_error_in_the_model_itself_passes_through(probe: Probe) -> None:
    _, model = compiled(probe)
    with torch.no_grad(), pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        model(IDS, IDS)


@pytest.fixture(params=EXECUTORS)
def backward_probe(request: pytest.FixtureRequest) -> Iterator[tuple[Probe, Callable[[Tensor], Tensor]]]:
    """A custom op called in the backward pass; and the op whose gradient it makes."""
    serial = next(_serials)

    @torch.library.custom_op(f"tpfx_faults::back{serial}", mutates_args=())
    def back(x: Tensor) -> Tensor:
        for rank, act in made.on_rank.items():
            if threading.current_thread().name.startswith(f"tpfx rank {rank} "):
                act()
        return x * 2

    @torch.library.custom_op(f"tpfx_faults::there{serial}", mutates_args=())
    def there(x: Tensor) -> Tensor:
        return x * 2

    for op in (back, there):
        op.register_fake(torch.empty_like)
    there.register_autograd(lambda _, gradient: back(gradient))
    made = Probe(f"tpfx_faults::back{serial}", back, request.param)
    with rule_for_each(back, there):
        yield made, there
    made.on_rank.clear()


def step(model: nn.Module) -> list[Tensor]:
    """The gradients of one step."""
    model.zero_grad()
    model(IDS).square().sum().backward()
    gradients = [weight.grad for weight in model.parameters()]
    return [
        one.full() if isinstance(one, tpfx.ShardedTensor) else one for one in gradients if one is not None
    ]


def test_an_error_in_backward_on_one_rank(
    backward_probe: tuple[Probe, Callable[[Tensor], Tensor]],
) -> None:
    """It is the caller's, with the rank and the node; the others do not hang, and the next step is right."""
    probe, op = backward_probe
    torch.manual_seed(0)
    reference = Faulty(op)
    torch.manual_seed(0)
    model = tpfx.compile(Faulty(op), CPUS, timeout=HOURS, device_compiler=probe.executor)
    torch.testing.assert_close(step(model), step(reference))

    def fail() -> None:
        raise ZeroDivisionError("on purpose")

    probe.on_rank[1] = fail
    with pytest.raises(ZeroDivisionError, match="on purpose") as caught:
        step(model)
    assert any("on rank 1 (cpu), in node back" in note for note in caught.value.__notes__)
    probe.on_rank.clear()
    torch.testing.assert_close(step(model), step(reference))


def test_a_nan_on_one_rank_is_in_the_loss_the_gradients_and_the_norm() -> None:
    def double(x: Tensor) -> Tensor:
        return x * 2

    torch.manual_seed(0)
    reference = Faulty(double)
    model = tpfx.compile(copy.deepcopy(reference), CPUS)
    step(model)
    weight = model.up.weight
    assert isinstance(weight, tpfx.ShardedTensor) and weight.placement and weight.shards is not None
    with torch.no_grad():
        weight.shards[1][0, 0] = float("nan")
        reference.up.weight.copy_(weight.full())
    assert reference.up.weight.isnan().sum() == 1
    for mine, theirs in zip(step(model), step(reference), strict=True):
        assert torch.equal(mine.isnan(), theirs.isnan())
    with pytest.raises(RuntimeError, match="non-finite"):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
