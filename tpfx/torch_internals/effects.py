"""Changes to torch that hold for the whole process: made for the first model, undone after the last.

    EFFECTS = Effects(Effect("a hook before every step", install))    # `install` returns what undoes it
    release = EFFECTS.hold(session)     # made by now; undone when no session is left, or all have released it

Nothing here changes torch when it is imported.
"""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from collections import deque
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

# Undoes a change and says whether it could: if not, it is asked again later.
Undo = Callable[[], bool]


@dataclass(frozen=True)
class Effect:
    """A change to torch, with a name for it; `install` makes the change."""

    name: str
    install: Callable[[], Undo]


class Effects:
    """Some changes to torch, made while anyone holds them.

    Owners come and go in any thread, and an owner may go at any moment, since garbage collection runs in the
    midst of other code, of this class too: who goes waits for no lock, but leaves a note to who has it.
    """

    def __init__(self, *effects: Effect) -> None:
        self.effects = effects
        self._owners = 0
        self._gone: deque[None] = deque()
        self._made: list[Undo] = []
        self._late: list[Undo] = []  # what could not be undone yet
        self._lock = threading.Lock()

    @property
    def in_place(self) -> bool:
        """Whether the changes are made now."""
        return bool(self._made)

    def hold(self, owner: object) -> Callable[[], object]:
        """Have the changes in place until `owner` has been collected, or the result has been called.

        Raises:
            Exception: what the installation of an effect raises; the others are undone.
        """
        with self._lock:
            if not self._owners:
                self._make()
            self._owners += 1
        self._settle()
        release = weakref.finalize(owner, self._let_go)
        release.atexit = False
        return release

    def _let_go(self) -> None:
        self._gone.append(None)
        self._settle()

    def _settle(self) -> None:
        """Count those who have gone, unless another thread, or the caller's own, is about to do so."""
        while self._gone and self._lock.acquire(blocking=False):
            try:
                while self._gone:
                    self._gone.popleft()
                    self._owners -= 1
                if not self._owners:
                    self._undo()
            finally:
                self._lock.release()

    def _make(self) -> None:
        try:
            for effect in self.effects:
                self._made.append(effect.install())
        except BaseException:
            self._undo()
            raise

    def _undo(self) -> None:
        made, self._made = self._made, []
        waiting = bool(self._late)
        self._late = [undo for undo in (*self._late, *reversed(made)) if not undo()]
        if self._late and not waiting:
            gc.callbacks.append(self._again)

    def _again(self, phase: str, _: Any) -> None:
        """After a collection of garbage: try again what could not be undone."""
        if phase == "stop" and self._lock.acquire(blocking=False):
            try:
                self._late = [undo for undo in self._late if not undo()]
                if not self._late:
                    gc.callbacks.remove(self._again)
            finally:
                self._lock.release()
            self._settle()


def replace_in(
    table: MutableMapping[Any, Any],
    key: Any,
    change: Callable[[Callable[..., Any]], Callable[..., Any]],
    absent: Callable[..., Any] | None = None,
) -> Undo:
    """Put `change(f)` in the place of the function `f` that a table has under a key.

    Undone, `f` is back, unless another function stands there by then: that one stays, and wherever it calls
    what it has found here it calls `f`.

    Args:
        table: as of a module's names, or of an op's kernels.
        key: into the table.
        change: makes the new function of the old one.
        absent: what stands for `f` where the table has none; then none is there afterwards.
    """
    before = table.get(key)
    original: Any = absent if before is None else before
    now = [change(original)]

    @functools.wraps(original)
    def ours(*args: Any, **kwargs: Any) -> Any:
        return now[0](*args, **kwargs)

    def undo() -> bool:
        now[0] = original
        if table.get(key) is ours:
            if before is None:
                del table[key]
            else:
                table[key] = before
        return True

    table[key] = ours
    return undo
