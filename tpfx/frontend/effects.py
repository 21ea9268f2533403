"""All that tpfx changes in torch for the whole process: made for the first session, undone after the last.

release = EFFECTS.hold(session)     # made by now; undone when no session is left, or all have released it
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..capture.decompositions import FAST_PATH_EFFECTS
from ..sharded_tensor import ShardedTensor
from ..sharded_tensor.dispatch import BESIDE_OPS
from ..sharded_tensor.optimizers import OPTIMIZER_EFFECTS
from ..sharded_tensor.state_tensor import StateTensor
from ..torch_internals.backward_pass import note_what_is_asked
from ..torch_internals.batch_guards import BATCH_EFFECTS
from ..torch_internals.dynamo import skip_frames
from ..torch_internals.dynamo_cache import capture_for
from ..torch_internals.effects import Effect, Undo, before_export, not_replicated
from ..torch_internals.fake import QUICK_SIZES
from ..torch_internals.wrapper_subclass import BRANCHES_REFUSE, captured_by_branches
from .plain_copy import is_split, plain_copy
from .recaptures import note_capture

T = TypeVar("T")


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

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the changes in place for a while."""
        owner = _Owner()
        release = self.hold(owner)
        try:
            yield
        finally:
            release()

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


class _Owner:
    """Has changes in place for a while."""


_OURS = "_tpfx_backend"


def own_backend(backend: T) -> T:
    """Note that a backend of Dynamo is one of tpfx: a function, or a class of those that are called."""
    setattr(backend, _OURS, True)
    return backend


def is_own(backend: Any) -> bool:
    """Whether a backend of Dynamo is one of tpfx."""
    return hasattr(backend, _OURS)


EFFECTS = Effects(
    skip_frames(__name__.partition(".")[0]),
    capture_for(is_own, (ShardedTensor, StateTensor), note_capture),
    *((captured_by_branches(ShardedTensor),) if BRANCHES_REFUSE else ()),
    *FAST_PATH_EFFECTS,
    *BATCH_EFFECTS,
    *QUICK_SIZES,
    *OPTIMIZER_EFFECTS,
    before_export(plain_copy),
    not_replicated(is_split),
    *BESIDE_OPS,
    note_what_is_asked(),
)
