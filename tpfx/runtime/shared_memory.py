"""Where processes of one host meet in C++: memory that they share, instead of sockets.

    meeting = shared_meeting(mesh, timeout=300.0)     # in all processes of the mesh's group; None without
    with meeting.run():
        ...                                           # programs whose collectives meet there

The memory is a file without a name, which is gone when the last process is.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import secrets
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..errors import CollectiveError, CollectiveTimeout, RankAborted
from ..native.build import NoExecutor, load
from ..torch_internals.distributed import outside_traces
from .mesh import Mesh
from .thread_collectives import call_of, mismatch
from .watch import REMEDY, waiting

log = logging.getLogger("tpfx")

ROOM = 1 << 20  # bytes that a rank shows the others at once
MOST_RANKS = 64

_OF_GROUP: weakref.WeakKeyDictionary[Any, SharedMeeting | None] = weakref.WeakKeyDictionary()


class SharedMeeting:
    """The meeting of a mesh's ranks, each of which is a process on this host, on its CPU.

    Args:
        mesh: the ranks.
        memory: of all of them, with its open file, in which this rank's byte is locked.
        timeout: seconds that a rank waits for the others.
    """

    def __init__(self, mesh: Mesh, memory: mmap.mmap, file: int, timeout: float) -> None:
        self.rank, self.devices, self.timeout = mesh.owned[0], mesh.devices, timeout
        self.names = {mesh.group_name(self.rank)}
        self._file = file
        self.native: Any = load().SharedMeeting(
            memory=memory, file=file, seat=self.rank, size=mesh.size, room=ROOM, timeout=timeout
        )
        self._memory = memory
        weakref.finalize(self, os.close, file).atexit = False  # its locks say that this process lives

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """While a graph is run; where that fails, the others are told."""
        self.native.begin()
        try:
            yield
        except BaseException:
            self.native.fail()
            raise

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of all ranks, in order, `[n × rows, ...]` from `[rows, ...]`."""
        with self.left_at("the gathering of a split tensor"):
            found: torch.Tensor = self.native.gather(rows)
        return found

    @contextlib.contextmanager
    def left_at(self, what: str) -> Iterator[None]:
        """Make an error of tpfx of leaving what is done here."""
        try:
            yield
        except load().Left as left:
            raise self.error(str(left), self.rank, what) from None

    def error(self, why: str, rank: int, node: str) -> Exception:
        """What a rank raises that has left the collective `node` without its result."""
        others = self._named(self.native.ended() if why == "lost" else self.native.missing())
        if why == "disagreed":
            return CollectiveError(mismatch([call_of(*each) for each in self.native.calls()]) or why)
        if why == "timed out":
            return CollectiveTimeout(
                f"{others} of {len(self.devices)} did not arrive in {node} within {self.timeout:g} s; raise "
                "`timeout` if its process is merely slow"
            )
        if why == "lost":
            return CollectiveError(
                f"the process of {others} has ended while rank {rank} was in {node}. {REMEDY}"
            )
        return RankAborted(f"rank {rank} was released from {node}: {others} failed there or before")

    def _named(self, ranks: list[int]) -> str:
        return ", ".join(f"rank {one} ({self.devices[one]})" for one in ranks) or "another rank"


def shared_meeting(mesh: Mesh, timeout: float) -> SharedMeeting | None:
    """The meeting of a mesh whose ranks are processes; None where they cannot share memory, or not on Linux.

    All processes of the group call this at once. `timeout` in seconds.

    Raises:
        NoExecutor: the extension cannot be built here.
    """
    if mesh.group not in _OF_GROUP:
        on_cpu = all(device.type == "cpu" for device in mesh.devices)
        if sys.platform != "linux" or not on_cpu or not 1 < mesh.size <= MOST_RANKS:
            _OF_GROUP[mesh.group] = None
        else:
            with outside_traces(), waiting("meeting in shared memory"):
                _OF_GROUP[mesh.group] = _met(mesh, timeout)
    return _OF_GROUP[mesh.group]


def known_meeting(mesh: Mesh) -> SharedMeeting | None:
    """That of `shared_meeting`, if there is one already."""
    return _OF_GROUP.get(mesh.group) if mesh.rank_is_process else None


def _met(mesh: Mesh, timeout: float) -> SharedMeeting | None:
    """The meeting, or none: all processes find the same."""
    problem: NoExecutor | None = None
    try:
        extension = load()
    except NoExecutor as error:
        problem = error
    hosts = _told(mesh, None if problem else _host())
    if problem is not None:
        raise problem
    if len(set(hosts)) > 1 or None in hosts:
        log.info("collectives go through torch.distributed: the processes are on several hosts")
        return None
    size = extension.SharedMeeting.bytes(size=mesh.size, room=ROOM)
    path = _told(mesh, _create(size) if mesh.owned[0] == 0 else None)[0]
    found = _open(path, mesh.owned[0], size)
    all_there = all(_told(mesh, found is not None))
    if path is not None and mesh.owned[0] == 0:
        path.unlink()  # it lives on as long as somebody has it open
    if found is None or not all_there:
        log.info("collectives go through torch.distributed: the processes cannot share memory")
        if found is not None:
            os.close(found[1])
        return None
    return SharedMeeting(mesh, *found, timeout)


def _told(mesh: Mesh, own: Any) -> list[Any]:
    """What each process says."""
    said: list[Any] = [None] * mesh.size
    dist.all_gather_object(said, own, mesh.group)
    return said


def _host() -> tuple[str, str]:
    """This host, since it was started."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return os.uname().nodename, boot.read_text() if boot.exists() else ""


def _create(size: int) -> Path | None:
    """A new file of zeroes in memory, of which every page is there; None where there is no room."""
    memory = Path("/dev/shm")
    folder = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    path = folder / f"tpfx-{secrets.token_hex(8)}"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(file, 0, size)
        finally:
            os.close(file)
    except OSError as problem:
        log.info("no shared memory of %d bytes in %s: %s", size, folder, problem)
        path.unlink(missing_ok=True)
        return None
    return path


def _open(path: Path | None, rank: int, size: int) -> tuple[mmap.mmap, int] | None:
    """A file mapped and open, the byte of this rank locked; None where that cannot be done."""
    import fcntl  # not everywhere

    if path is None:
        return None
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        return mmap.mmap(file, size), file
    except OSError as problem:
        log.info("%s cannot be shared: %s", path, problem)
        return None
