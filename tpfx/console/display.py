"""Shows what takes over two seconds, where someone looks: on a terminal, or in a notebook.

Importing this begins it. `TPFX_PROGRESS=0` ends it, and of several processes the first alone shows. On a
terminal it is one line, overwritten and cleared; the cursor is never hidden, so that nothing is left behind
however the process ends. In a notebook it is a line of the cell's output, which stays.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
import weakref
from contextvars import copy_context
from functools import partial
from typing import Any, Protocol

from rich.console import Console

from .progress import LISTENERS, working

PATIENCE = 2.0  # seconds
EVERY = 0.2


class Screen(Protocol):
    """Where a line is shown, over the one before."""

    def show(self, text: str) -> None:
        """This instead of what was shown."""

    def end(self, text: str) -> None:
        """There is nothing to show any more; `text` was the last of it."""


class Terminal:
    """A line of standard error. The cursor waits at its start, so that others write over it."""

    def __init__(self) -> None:
        self.stream, self._shown = sys.stderr, ""

    def show(self, text: str) -> None:
        """Overwrite the line, if it is another."""
        if text == self._shown:
            return
        self._shown = text
        self.stream.write(f"\r{text[: shutil.get_terminal_size().columns - 1]}\x1b[K\r")
        self.stream.flush()

    def end(self, text: str) -> None:
        """Clear the line."""
        self.show("")


class Notebook:
    """A line of a cell's output."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, text: str) -> None:
        """Write the line, or change it."""
        from IPython.display import display

        line = {"text/plain": text}
        if self._handle is None:
            self._handle = display(line, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(line, raw=True)

    def end(self, text: str) -> None:
        """Leave what it was, and how long it took."""
        self.show(text)


class Lines:
    """Standard error that is neither, as a file: one line, at the end."""

    def show(self, text: str) -> None:
        """It waits for the end."""

    def end(self, text: str) -> None:
        """Write the line."""
        print(text, file=sys.stderr)


def screen() -> Screen | None:
    """Where someone looks; None where nobody does, or wants to."""
    if os.environ.get("TPFX_PROGRESS") == "0" or os.environ.get("RANK", "0") != "0":
        return None
    if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return Terminal()
    in_notebook = "IPython" in sys.modules and Console(stderr=True).is_jupyter
    return Notebook() if in_notebook else None


class Display:
    """Shows the innermost of what is being done; a thread of its own waits and writes."""

    def __init__(self) -> None:
        # Weakly, so that what an interrupt kept from being told as ended is not shown for ever.
        self._tasks: list[weakref.ref[working]] = []
        self._changing = threading.Lock()
        self._over: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def begin(self, task: working) -> None:
        """Something begins."""
        where = None if task.show is False else screen() or (Lines() if task.show else None)
        if where is None:
            return
        with self._changing:
            self._tasks.append(weakref.ref(task))
            if self._thread is None or not self._thread.is_alive():
                self._over = threading.Event()
                given = where, self._over, task.what, 0.0 if task.show else PATIENCE
                run = partial(copy_context().run, self._watch, *given)  # a notebook's cell is in the context
                self._thread = threading.Thread(target=run, name="tpfx progress", daemon=True)
                self._thread.start()

    def end(self, task: working) -> None:
        """It has ended: what is shown is cleared before anything else is written."""
        thread = None
        with self._changing:
            self._tasks = [one for one in self._tasks if one() not in (task, None)]
            if not self._tasks and self._over is not None:
                thread, self._thread = self._thread, None
                self._over.set()
        if thread is not None:
            thread.join(1.0)

    def _innermost(self) -> str:
        """What is shown; nothing where all has ended."""
        return next((str(task) for one in reversed(self._tasks) if (task := one()) is not None), "")

    def _watch(self, where: Screen, over: threading.Event, what: str, patience: float) -> None:
        if patience and over.wait(patience):
            return
        start = time.monotonic() - patience
        try:
            while not over.wait(EVERY) and (text := self._innermost()):
                where.show(text)
        finally:
            where.end(f"{what}, {time.monotonic() - start:.0f} s")


LISTENERS.append(Display())
