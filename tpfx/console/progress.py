"""What is being done, for whoever wants to know: `display` shows what takes over two seconds.

with working("capturing Net"):                  # of what lies within each other the innermost is shown
    with working("planning for 4 devices"): …
with working("compiling") as at: at("device 2 of 4")

Nothing here starts a thread; who listens may.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol


class Listener(Protocol):
    """Is told of what begins and what has ended."""

    def begin(self, task: working) -> None:
        """Something begins."""

    def end(self, task: working) -> None:
        """It has ended, or failed."""


LISTENERS: list[Listener] = []


class working:
    """While this lasts, something is being done.

    Args:
        what: a participle, and of what.
        show: whether it is shown; None where someone looks.
    """

    def __init__(self, what: str, show: bool | None = None) -> None:
        self.what, self.show, self.detail = what, show, ""
        self.start = 0.0

    def __enter__(self) -> Callable[[str], None]:
        self.start = time.monotonic()
        for listener in LISTENERS:
            listener.begin(self)
        return self._at

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for listener in LISTENERS:
            listener.end(self)

    def _at(self, detail: str) -> None:
        self.detail = detail

    def __str__(self) -> str:
        told = f"{self.what}: {self.detail}" if self.detail else self.what
        return f"{told}, {time.monotonic() - self.start:.0f} s"
