"""What only one process asks for: all say where they wait, and end within seconds."""

from __future__ import annotations

import atexit
import sys
import threading
import time

import pytest
import torch.distributed as dist

from tests.support.processes import finish, start
from tpfx.runtime import watch

PROGRAM = """
import sys, time
import torch
import torch.distributed as dist
import tpfx
from tests.support.nets import TiedNet
from tpfx.runtime import watch

watch.PATIENCE = 1.5
model, ids = tpfx.compile(TiedNet().eval()), torch.arange(10).view(2, 5)
rank, how = dist.get_rank(), sys.argv[1]
with torch.no_grad():
    for _ in range(9):  # inputs are compared less and less often
        model(ids)
    if how == "evaluates" and rank == 0:
        model(ids)
    if how in ("saves", "others end") and rank == 0:
        torch.save(model.state_dict(), "/dev/null")
    if how == "is slow":
        if rank == 1:
            time.sleep(4)
        model.up.weight.full()
        end = time.monotonic() + 4
        while rank == 0 and time.monotonic() < end:
            pass
        model(ids)
if how != "others end":
    dist.barrier()
print("done")
"""
BARRIER = "rank 1 is in torch.distributed.barrier, from <string>"
GATHERS = "rank 0 is gathering a split tensor, from <string>"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("saves", (GATHERS, BARRIER, "tpfx.full_state_dict")),
        pytest.param("evaluates", ("rank 0 is running a graph", BARRIER), marks=pytest.mark.slow),
    ],
)
def test_what_only_rank_0_asks_for_is_named_on_every_rank(how: str, words: tuple[str, ...]) -> None:
    started = time.monotonic()
    for code, errors in finish(start(2, "-c", PROGRAM, how), 120.0):
        assert code == 1
        assert "tpfx.CollectiveError" in errors and all(word in errors for word in words), errors[-3000:]
    assert time.monotonic() - started < 110.0  # the group itself would wait for 300 s


@pytest.mark.slow
def test_those_that_have_ended_are_named() -> None:
    (code, errors), (other, _) = finish(start(2, "-c", PROGRAM, "others end"), 120.0)
    assert (code, other) == (1, 0)
    ended = "the process of rank 1 (cpu) has ended while rank 0 was in the gathering of a split tensor"
    assert ended in errors or (GATHERS in errors and "rank 1 has ended" in errors), errors
    assert "take it out of `if rank == 0`" in errors


@pytest.mark.slow
def test_a_process_that_is_slow_or_sleeps_is_waited_for() -> None:
    assert [code for code, _ in finish(start(2, "-c", PROGRAM, "is slow"), 120.0)] == [0, 0]


def test_who_waits_ends_with_one_that_has_seen_that_it_is_in_vain(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It need not have seen it itself: a thread that looks at signals while it waits may seem to work."""
    store, ended = dist.HashStore(), threading.Event()
    monkeypatch.setattr(watch.os, "_exit", lambda code: ended.set())
    monkeypatch.setattr(watch.dist, "get_rank", lambda: 0)
    looking = watch.Watch(store)
    looking.groups = {(0, 1)}
    atexit.unregister(looking._end)
    store.set("tpfx/knows/1", "  rank 1 is in a barrier")
    assert not ended.wait(3 * watch.TICK)  # this one does something
    with watch.waiting("gathering"):
        assert ended.wait(10)
    looking._stop.set()
    assert "wait for each other in different places\n  rank 1 is in a barrier\n" in capfd.readouterr().err
    assert store.get("tpfx/knows/0")


def test_the_outermost_place_counts() -> None:
    with watch.waiting("outer"), watch.waiting("inner"):
        assert watch._place == ("outer", threading.get_ident())
    assert watch._place is None


def test_calls_of_torch_distributed_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a call that fails at once: it looks at the stack from inside."""
    seen = []

    def look() -> None:
        seen.append(watch._torch_call(sys._getframe(1)))
        raise LookupError("looked")

    monkeypatch.setattr(dist.distributed_c10d, "_get_default_group", look)
    with pytest.raises(LookupError):
        dist.barrier()
    assert seen[0] is not None and seen[0][0] == "in torch.distributed.barrier"
    assert watch._torch_call(sys._getframe()) is None
