"""The memory that all ranks share: where they meet, and a region for each to allocate from.

shared = SharedFile.create(ranks)            # in the caller
arena, meeting = shared.open(mesh, timeout)  # in each process, for the one rank that it runs

It is a file without a name, which is gone when the last process is; of its size only what is used is there.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass
from typing import Any

from ..native.build import load
from ..runtime.mesh import Mesh
from ..runtime.shared_memory import ROOM, SharedMeeting

_UNIT = 1 << 21


@dataclass(frozen=True)
class SharedFile:
    """An open file of memory, for so many ranks.

    Attributes:
        file: its descriptor.
        ranks: how many there are.
        region: the bytes that each may allocate.
    """

    file: int
    ranks: int
    region: int

    @staticmethod
    def create(ranks: int) -> SharedFile:
        """A new one; each rank may have all memory of the machine."""
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        made = SharedFile(os.memfd_create("tpfx", os.MFD_CLOEXEC), ranks, -(-whole // _UNIT) * _UNIT)
        os.ftruncate(made.file, made.size)
        return made

    @property
    def meeting(self) -> int:
        """The bytes in which ranks meet, before the regions."""
        needed = int(load().SharedMeeting.bytes(size=self.ranks, room=ROOM))
        return -(-needed // _UNIT) * _UNIT

    @property
    def size(self) -> int:
        """All bytes."""
        return self.meeting + self.ranks * self.region

    def open(self, mesh: Mesh, timeout: float) -> tuple[Any, SharedMeeting]:
        """The extension's `Arena` for a process that runs one rank, and where that meets the others.

        The meeting closes the file; the rank's byte in it is locked until then, or until the process ends.
        """
        rank = mesh.owned[0]
        fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        begin = self.meeting + rank * self.region
        arena = load().Arena(file=self.file, size=self.size, begin=begin, end=begin + self.region)
        return arena, SharedMeeting(mesh, mmap.mmap(self.file, self.meeting), self.file, timeout)
