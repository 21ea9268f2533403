"""Processes that wait for each other in different places: each says so and ends within seconds.

with waiting("gathering lm_head.weight"):     # what all processes of a group must come to together
    ...

What only rank 0 asks for, a state dict or an evaluation, has the others wait elsewhere, in a barrier perhaps,
or end. A thread of each process looks at what its main code does, and tells the others where that stands
still. Where all processes do, and those of a group in different places, none will ever go on.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from ..torch_internals.distributed import shared_store

PATIENCE = 5.0  # seconds without work before a process counts as waiting
TICK = 0.25
ENDED = "has ended"
FAILED = (
    "tpfx.CollectiveError: the processes that a model is split over wait for each other in different places"
)
REMEDY = (
    "Every process must do what is done with a split model: take it out of `if rank == 0`, and leave there "
    "what needs no other, such as writing a file. A state dict gathers while it is saved: to save on one, "
    "have each call tpfx.full_state_dict(model, 'cpu')"
)
_TORCH = str(Path(torch.__file__).parent)
_LIBRARIES = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parents[1]), "<eval_with_key>")

_place: tuple[str, int] | None = None  # what all must come to, and the thread that is in it
_entered = 0


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """While this process is in something that the others of its group must come to; the outermost counts."""
    global _place, _entered
    if _place is not None:
        yield
        return
    _entered += 1
    _place = what, threading.get_ident()
    try:
        yield
    except RuntimeError as error:
        if "closed by peer" in str(error):
            error.add_note(f"another process has ended, or gone on, while this one was {what}. {REMEDY}")
        raise
    finally:
        _place = None


class Watch:
    """Watches this process, from a thread of its own, for those that it shares groups with."""

    def __init__(self, store: Any) -> None:
        self.groups: set[tuple[int, ...]] = set()
        self._store, self._rank = store, dist.get_rank()
        self._told: dict[str, str] = {}
        self._stop = threading.Event()
        self._main = threading.main_thread().ident or 0
        # Where it stands, since when, and the CPU time by then.
        self._still: tuple[Any, float, float] = (None, 0.0, 0.0)
        self._thread = threading.Thread(target=self._watch, name="tpfx watch", daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def _watch(self) -> None:
        while not self._stop.wait(TICK):
            try:
                self._look()
            except RuntimeError:  # who keeps the store has ended: its connections tell the others
                return

    def _look(self) -> None:
        text = self._stands_in()
        self._tell("waits", text)
        if text:
            said = {rank: self._heard("waits", rank) for rank in range(dist.get_world_size())}
            for group in self.groups if all(said.values()) else ():
                if len({said[rank].partition(", from")[0] for rank in group}) > 1:
                    self._give_up(group, "\n".join(f"  rank {rank} {said[rank]}" for rank in group))
        if self._still[0] is not None:  # another may have seen it first, and is about to end
            for group in self.groups:
                known = next(filter(None, (self._heard("knows", rank) for rank in group)), None)
                if known is not None:
                    self._give_up(group, known)

    def _stands_in(self) -> str:
        """Where this process waits and has not worked for a while; empty where it does something."""
        place = _place
        thread = self._main if place is None else place[1]
        frame = sys._current_frames().get(thread)
        where = (place[0], _entered) if place is not None else _torch_call(frame)
        now, worked = time.monotonic(), _cpu_seconds(thread)
        if where is None or where != self._still[0] or worked - self._still[2] > PATIENCE / 50:
            self._still = where, now, worked
        if where is None or now - self._still[1] < PATIENCE:
            return ""
        return f"is {where[0]}, from {_caller(frame)}"

    def _tell(self, what: str, text: str) -> None:
        if text != self._told.get(what, ""):
            self._store.set(f"tpfx/{what}/{self._rank}", text)
            self._told[what] = text

    def _heard(self, what: str, rank: int) -> str:
        key = f"tpfx/{what}/{rank}"
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def _give_up(self, group: tuple[int, ...], lines: str) -> None:
        """End the process: a collective that waits cannot be left otherwise."""
        print(f"{FAILED}\n{lines}\n{REMEDY}", file=sys.stderr, flush=True)
        self._tell("knows", lines)
        # The others' connections last until they have said it too.
        until = time.monotonic() + max(PATIENCE, 5.0)
        while time.monotonic() < until and not all(
            self._heard("knows", rank) or self._heard("waits", rank) == ENDED for rank in group
        ):
            time.sleep(TICK)
        os._exit(1)

    def _end(self) -> None:
        self._stop.set()
        self._thread.join(5.0)
        with contextlib.suppress(RuntimeError):  # nobody is left to hear it
            self._tell("waits", ENDED)


_watches: list[Watch] = []


def watch(group: dist.ProcessGroup) -> None:
    """From now on, end this process where it and others of a group wait for each other in vain."""
    if not _watches:
        _watches.append(Watch(shared_store()))
    _watches[0].groups |= {tuple(dist.get_process_group_ranks(group))}


def _torch_call(frame: FrameType | None) -> tuple[str, int] | None:
    """The call of torch.distributed that a thread is in, if it is."""
    while frame is not None and frame.f_code.co_filename.startswith(_TORCH):
        name = frame.f_code.co_name
        if frame.f_globals.get("__name__") == dist.barrier.__module__ and hasattr(dist, name):
            return f"in torch.distributed.{name}", id(frame)
        frame = frame.f_back
    return None


def _caller(frame: FrameType | None) -> str:
    """The line outside of tpfx and torch that has led to a frame."""
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    return "its end" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _cpu_seconds(thread: int) -> float:
    return time.clock_gettime(time.pthread_getcpuclockid(thread))
