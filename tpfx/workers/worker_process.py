"""A worker as the caller has it: started, spoken to, and ended.

    worker = WorkerProcess(mesh, rank=1, shared=shared, arena=arena, timeout=300.0, threads=1)
    worker.ask("program", ...)       # what it answers
    worker.end()

It is a Python of its own that imports tpfx alone, so that no main program is needed and none runs twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import astuple
from typing import Any

from ..errors import WorkerError
from ..runtime.mesh import Mesh
from .channel import Channel
from .shared_file import SharedFile

PROGRAM = (
    "import json, sys; told = json.loads(sys.argv[1]); sys.path[:] = told['path']; "
    "from tpfx.workers.worker import main; main(told)"
)
# Seconds that a process has for its end.
PATIENCE = 2.0


class WorkerProcess:
    """The process of one rank.

    Args:
        mesh: the ranks.
        rank: the one that the process runs.
        shared: the memory of all of them.
        arena: that memory as this process has it.
        timeout: seconds that a rank waits for the others.
        threads: on how many the rank's ops compute.
    """

    def __init__(
        self, mesh: Mesh, rank: int, shared: SharedFile, arena: Any, timeout: float, threads: int
    ) -> None:
        self.rank, self.device = rank, mesh.devices[rank]
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        told = {
            "path": sys.path,
            "caller": os.getpid(),
            "rank": rank,
            "devices": list(map(str, mesh.devices)),
            "names": mesh.names,
            "shared": astuple(shared),
            "socket": its.fileno(),
            "timeout": timeout,
            "threads": threads,
        }
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM, json.dumps(told)],
                pass_fds=(shared.file, its.fileno()),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "TPFX_PROGRESS": "0"},  # the caller shows it
                process_group=0,  # Ctrl-C is the caller's
            )
        self._channel = Channel(mine, arena)
        self._ready = False

    def tell(self, *parts: Any) -> None:
        """Say something to it.

        Raises:
            WorkerError: it has ended.
        """
        if not self._ready:
            self._ready = self._hear(None) == ("ready",)
        try:
            self._channel.send(*parts)
        except OSError:
            raise self._lost() from None

    def hear(self, timeout: float | None = None) -> tuple[Any, ...]:
        """What it answers.

        Raises:
            WorkerError: it has ended.
            TimeoutError: it does not answer within `timeout` seconds.
        """
        return self._hear(timeout)

    def _hear(self, timeout: float | None) -> tuple[Any, ...]:
        found = self._channel.receive(timeout)
        if found is None:
            raise self._lost()
        return found

    def _lost(self) -> WorkerError:
        """That it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # its end of the connection goes first
            self._process.wait(PATIENCE)
        code = self._process.poll()
        how = "has closed its connection"
        if code is not None:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has ended with code {code}"
        return WorkerError(f"the process {self._process.pid} of rank {self.rank} ({self.device}) {how}")

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def close(self) -> None:
        """Have it end, if it waits for the caller."""
        self._channel.close()

    def end(self) -> None:
        """End it, and see that it has."""
        self.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
