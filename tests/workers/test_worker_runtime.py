"""A model whose ranks are processes: used as before, interrupted, failing, and ended with nothing left."""

from __future__ import annotations

import copy
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tpfx
from tests.support.models import inputs, tiny
from tests.support.nets import Mlp
from tests.support.workers import left_of, shared_names, workers_of
from tpfx.errors import DeviceError, TpfxError, WorkerError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    names = shared_names()
    yield
    for _ in range(2):  # a model's graphs go first
        gc.collect()
    assert left_of(os.getpid()) == [] and shared_names() == names


def trained(model: Any, given: dict[str, Any]) -> list[float]:
    """The losses of two steps."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), 1e-2), []
    model.train()
    for _ in range(2):
        loss = model(**given, labels=given["input_ids"]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def worker_of(model: torch.nn.Module) -> int:
    (found,) = workers_of(os.getpid())
    return found


def test_one_model_generates_trains_is_saved_fails_is_interrupted_and_loses_a_process(tmp_path: Path) -> None:
    plain = tiny("llama", num_hidden_layers=1)
    model = tpfx.compile(copy.deepcopy(plain), ["cpu", "cpu"], processes=True)
    given = inputs(plain)
    text = model.generate(**given, max_new_tokens=6)
    assert torch.equal(text, plain.generate(**given, max_new_tokens=6))
    with pytest.raises(IndexError, match="index out of range") as raised:
        model.generate(torch.full_like(text, 1000), max_new_tokens=2)
    assert "on rank" in raised.value.__notes__[0] and "embed_tokens" in str(raised.value.__notes__)
    _interrupt(lambda: model.generate(**given, max_new_tokens=6))
    assert torch.equal(model.generate(**given, max_new_tokens=6), text)

    torch.testing.assert_close(trained(model, given), trained(plain, given), rtol=1e-4, atol=1e-4)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    saved = torch.load(tmp_path / "model.pt")
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=1e-2, atol=1e-3)

    os.kill(worker_of(model), signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(WorkerError, match=r"rank 1 \(cpu\) was ended by SIGKILL; the model keeps"):
            model.generate(**given, max_new_tokens=6)
    tpfx.unshard(model)
    torch.testing.assert_close(dict(model.state_dict()), saved, rtol=0, atol=0)


def _interrupt(run: Any) -> None:
    """Ctrl-C in the midst of something that is done again and again; a second one, if none was seen."""
    over = threading.Event()

    def interrupt() -> None:
        until_next = 0.2
        while not over.wait(until_next):
            os.kill(os.getpid(), signal.SIGINT)
            until_next = 5.0

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        try:
            while True:
                run()
        finally:
            over.set()
    thread.join()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"device_compiler": "inductor"}, TpfxError, "device_compiler='inductor' does not go with processes"),
        ({"group": object()}, DeviceError, "there are some already, of torchrun or of a group"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    net = Mlp(8)
    with pytest.raises(error, match=text):
        tpfx.compile(net, ["cpu", "cpu"], processes=True, **options)
    assert type(net.up.weight) is torch.nn.Parameter


def test_one_device_needs_no_process() -> None:
    net = Mlp(8)
    tpfx.compile(net, ["cpu"], processes=True)
    assert net(torch.ones(2, 64)).shape == (2, 64) and not workers_of(os.getpid())


PROGRAM = """
import os, signal, sys, torch, tpfx
from tests.support.nets import Mlp
net = tpfx.compile(Mlp(), ["cpu"] * 2, processes=True)
x = torch.ones(2, 64)
with torch.no_grad():
    net(x)
    print(os.getpid(), flush=True)
    {end}
"""
# How a caller ends, and with what code.
ENDS = {
    "at its end": ("pass", 0),
    "by an exception": ("net(torch.ones(2, 65))", 1),
    "by sys.exit": ("sys.exit(3)", 3),
    "at once": ("os._exit(4)", 4),
    "by Ctrl-C": ("while True: net(x)", -signal.SIGINT),
    "killed": ("while True: net(x)", -signal.SIGKILL),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ENDS)
def test_nothing_is_left_of_a_caller_that_ends(how: str) -> None:
    """In a program without a guard, read from stdin."""
    end, code = ENDS[how]
    caller = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        process_group=0,
    )
    with caller:
        assert caller.stdin is not None and caller.stdout is not None
        caller.stdin.write(PROGRAM.format(end=end))
        caller.stdin.close()
        pid = int(caller.stdout.readline())
        if code < 0:
            assert len(workers_of(pid)) == 1
            (os.killpg if code == -signal.SIGINT else os.kill)(pid, -code)
        assert caller.wait(60) == code
    assert left_of(pid) == []
