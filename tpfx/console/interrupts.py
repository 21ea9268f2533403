"""Ctrl-C ends the command line without a traceback, at any moment, with status 130.

Importing this begins it, where the process is the command line: torch takes seconds to import, and makes
other errors of a KeyboardInterrupt that comes amid its C++. While the command runs Ctrl-C raises, so that
what was begun is tidied up; pressed again it ends the process at once.

    with interruptible() as was_pressed: …
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

STATUS = 130  # as shells have it: 128 and the signal's number


def is_command(argv: Sequence[str], original: Sequence[str]) -> bool:
    """Whether a process is `tpfx …` or `python -m tpfx …`, by `sys.argv` and `sys.orig_argv`.

    >>> is_command(["-m", "plan"], ["python", "-m", "tpfx", "plan"])
    True
    """
    if argv[:1] == ["-m"]:  # so it is until Python has found the module
        return ("-m", "tpfx") in pairwise(original)
    return bool(argv) and Path(argv[0]).stem == "tpfx"


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C raises KeyboardInterrupt, once; afterwards, and when this is over, it ends the process.

    Gives what says whether it was pressed: C++ may have made another error of it, or a destructor dropped it.
    """
    pressed = False

    def press(*_: Any) -> None:
        nonlocal pressed
        if pressed:
            _end()
        pressed = True
        raise KeyboardInterrupt

    before = sys.unraisablehook

    def unraisable(problem: Any) -> None:
        if issubclass(problem.exc_type, KeyboardInterrupt):
            _end()
        before(problem)

    handler = _handle(press)
    sys.unraisablehook = unraisable
    try:
        yield lambda: pressed
    finally:
        sys.unraisablehook = before
        _handle(handler)


def _handle(handler: Any) -> Any:
    """Have a handler for Ctrl-C, unless it is ignored, as of what runs in the background; the one before."""
    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)
    return before


def _end(*_: Any) -> NoReturn:
    os._exit(STATUS)


if is_command(sys.argv, sys.orig_argv):
    _handle(_end)
