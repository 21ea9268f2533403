"""The process of one rank: it runs the rank's programs for the caller, until that ends.

`worker_process` starts it; it never imports the caller's main program.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..native.build import load
from ..native.rank_program import RankProgram
from ..native.timing import timed, untimed
from ..runtime.mesh import Mesh
from ..runtime.shared_memory import SharedMeeting
from ..runtime.thread_runtime import node_of
from ..torch_internals.distributed import below_autograd, set_settings
from ..torch_internals.fx import code_of
from .channel import Channel
from .graph_text import loads
from .groups import SharedGroups
from .shared_file import SharedFile
from .value_text import read_value, write_value

TICK = 0.5  # seconds between looks at whether the caller lives


class Worker:
    """Carries out what the caller says, one thing after the other."""

    def __init__(self, channel: Channel, arena: Any, mesh: Mesh, meeting: SharedMeeting) -> None:
        self._channel, self._arena, self._mesh, self._meeting = channel, arena, mesh, meeting
        self._groups = SharedGroups(mesh, meeting)
        self._forwards: dict[int, tuple[Callable[..., Any], Any]] = {}
        self._lent = load().Lent()

    def serve(self) -> None:
        """Until the caller has ended."""
        kinds: dict[str, Callable[..., tuple[Any, ...]]] = {
            "program": self._program,
            "run": self._run,
            "time": self._time,
            "times": self._times,
            "settle": lambda token: ("settled", token),
        }
        self._answer("ready")
        while (said := self._channel.receive()) is not None:
            kind, *rest = said
            self._answer(*kinds[kind](*rest))

    def _answer(self, *parts: Any) -> None:
        """Say something to the caller, if he has not ended."""
        with contextlib.suppress(BrokenPipeError):
            self._channel.send(*parts)

    def _program(self, number: int, compiler: str, text: bytes) -> tuple[Any, ...]:
        """Have a program, by a number."""
        try:
            module, rank = loads(text), self._mesh.owned[0]
            forward = RankProgram(module, rank, self._meeting) if compiler == "native" else code_of(module)
        except Exception as error:
            return _failure(error)
        self._forwards[number] = forward, load().Desk(self._arena)
        return "done", None

    def _time(self, number: int) -> tuple[Any, ...]:
        """Begin to note when the ops of a program start."""
        forward, desk = self._forwards[number]
        self._forwards[number] = timed(forward), desk
        return "done", None

    def _times(self, number: int) -> tuple[Any, ...]:
        """End that: what has been noted."""
        forward, desk = self._forwards[number]
        self._forwards[number] = untimed(forward), desk
        return "done", forward.take_times()  # type: ignore[attr-defined]

    def _run(
        self,
        number: int,
        generation: int,
        place: tuple[int, int],
        modes: tuple[bool, bool],
        settings: tuple[Any, ...] | None,
        ended: Sequence[int],
        forgotten: Sequence[int],
    ) -> tuple[Any, ...]:
        """Run a program: where its results are."""
        self._lent.take_back(ended)
        for other in forgotten:
            self._forwards.pop(other, None)
        if settings is not None:
            set_settings(settings)
        self._meeting.native.begin(generation)
        forward, desk = self._forwards[number]
        try:
            args = desk.unpack(*place, read_value)
            with _in_modes(*modes):
                results = forward(*args)
            return "done", desk.pack(results, self._lent, write_value)
        except Exception as error:
            self._meeting.native.fail()
            return _failure(error)


def _in_modes(grad: bool, inference: bool) -> contextlib.AbstractContextManager[Any]:
    """The caller's modes; below autograd where nothing is to be recorded."""
    if inference:
        return torch.inference_mode()
    return torch.enable_grad() if grad else below_autograd()


def _failure(error: Exception) -> tuple[Any, ...]:
    """What the caller is to raise, and the node where it happened."""
    node = node_of(error.__traceback__)
    error.__cause__ = error.__context__ = None
    try:
        text = pickle.dumps(error)
        pickle.loads(text)
    except Exception:  # whatever its class makes of it; the caller can have the words
        text = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return "failed", node, text


def _end_with(caller: int) -> None:
    """End this process when the caller's has ended, whatever it does then."""
    while os.getppid() == caller:
        time.sleep(TICK)
    os._exit(1)


def main(told: dict[str, Any]) -> None:
    """Be the process of one rank, as `worker_process` says."""
    threading.Thread(target=_end_with, args=(told["caller"],), daemon=True).start()
    torch.set_num_threads(told["threads"])
    torch.set_grad_enabled(False)
    devices = tuple(map(torch.device, told["devices"]))
    mesh = Mesh(devices, (told["rank"],), tuple(told["names"]), apart=True)
    arena, meeting = SharedFile(*told["shared"]).open(mesh, told["timeout"])
    load().allocate_from(arena)
    end = socket.socket(fileno=told["socket"])
    Worker(Channel(end, arena), arena, mesh, meeting).serve()
    os._exit(0)
