"""What takes long is shown where someone looks, nowhere else, and cleared however it ends."""

from __future__ import annotations

import io
import os
import select
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import tpfx
from tests.support.nets import TiedNet
from tests.support.sharded import CPUS
from tpfx.console import display, progress
from tpfx.console.progress import working

IDS = torch.arange(10).view(2, 5)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes over a hundredth of a second is long."""
    monkeypatch.setattr(display, "PATIENCE", 0.01)
    monkeypatch.setattr(display, "EVERY", 0.01)
    monkeypatch.delenv("TPFX_PROGRESS")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, at_once: None) -> Iterator[Any]:
    """Reads what is written to standard error, which is a terminal."""
    inner, outer = os.openpty()

    def read(until: str) -> str:
        found = ""
        while until not in found:
            assert select.select([inner], [], [], 30)[0], found
            found += os.read(inner, 4096).decode()
        return found

    with open(outer, "w") as stream:
        monkeypatch.setattr(display, "sys", types.SimpleNamespace(stderr=stream, modules=sys.modules))
        monkeypatch.setenv("TERM", "xterm")
        yield read
    os.close(inner)


def shown() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tpfx progress"]


def test_the_innermost_is_shown_and_the_line_is_cleared(terminal: Any) -> None:
    with working("capturing Net"):
        terminal("\rcapturing Net, 0 s\x1b[K\r")
        with working("compiling") as at:
            at("device 2 of 4")
            terminal("\rcompiling: device 2 of 4, 0 s\x1b[K\r")
        terminal("\rcapturing Net, 0 s\x1b[K\r")
    assert terminal("\r\x1b[K\r").endswith("\r\x1b[K\r") and not shown()


def test_ctrl_c_leaves_nothing(terminal: Any) -> None:
    with pytest.raises(KeyboardInterrupt), working("capturing"):
        terminal("capturing")
        raise KeyboardInterrupt
    assert terminal("\r\x1b[K\r").endswith("\r\x1b[K\r") and not shown()


def test_what_was_not_told_as_ended_is_not_shown_for_ever(terminal: Any) -> None:
    """An interrupt may come before it is."""
    task = working("capturing")
    task.__enter__()
    (thread,) = shown()
    terminal("capturing")
    gone = weakref.ref(task)
    del task
    terminal("\r\x1b[K\r")
    thread.join(30)
    assert gone() is None and not thread.is_alive()
    with working("more"):  # and what comes later is shown
        terminal("more")


@pytest.mark.parametrize(
    ("name", "value"), [("TPFX_PROGRESS", "0"), ("TERM", "dumb"), ("RANK", "1"), ("", "no terminal")]
)
def test_nobody_looks(terminal: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    assert isinstance(display.screen(), display.Terminal)
    if name:
        monkeypatch.setenv(name, value)
    else:
        monkeypatch.setattr(display, "sys", types.SimpleNamespace(stderr=io.StringIO(), modules={}))
    assert display.screen() is None
    with working("capturing"):
        assert not shown()


def test_a_notebook_has_a_line_that_stays(monkeypatch: pytest.MonkeyPatch, at_once: None) -> None:
    lines: list[str] = []
    changed = threading.Event()

    def note(line: dict[str, str], **_: Any) -> Any:
        lines.append(line["text/plain"])
        changed.set()
        return types.SimpleNamespace(update=note)

    monkeypatch.setattr(display, "screen", display.Notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=note))
    with working("capturing Net"):
        assert changed.wait(30)
    assert not shown() and set(lines) == {"capturing Net, 0 s"}


def test_what_compiling_does_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Listener:
        def begin(self, task: working) -> None:
            told.append(task.what)

        def end(self, task: working) -> None:
            told.append(f"{task.what}: {task.detail}" if task.detail else "")

    monkeypatch.setattr(progress, "LISTENERS", [Listener()])
    model = tpfx.compile(TiedNet().eval(), CPUS)
    with torch.no_grad():
        model(IDS)
    assert [one for one in told if one] == [
        "capturing TiedNet",
        "planning for 2 devices",
        "dividing weights",
        "writing the graph of each device",
        "writing the graph of each device: 2 of 2",
        "compiling",
        "compiling: device 2 of 2",
    ]
    told.clear()
    with torch.no_grad():
        model(IDS)
    assert not told
