"""What a model whose ranks are processes has running, and what of it is left.

assert workers_of(os.getpid()) == [4711]
assert not left_of(caller)
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path


def workers_of(caller: int) -> list[int]:
    """The processes of ranks that a process has started."""
    return [pid for pid in _processes() if f'"caller": {caller},' in _read(pid, "cmdline")]


def has_memory(pid: int) -> bool:
    """Whether a process has memory of workers mapped, or open."""
    mapped = "memfd:tpfx" in _read(pid, "maps")
    links = []
    with contextlib.suppress(OSError):  # it has ended
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                links.append(os.readlink(file))
    return mapped or any("memfd:tpfx" in link for link in links)


def left_of(caller: int, seconds: float = 10.0) -> list[int]:
    """The workers of a process, or itself if it has their memory, that are there after so long still."""
    until = time.monotonic() + seconds
    while (
        left := [*workers_of(caller), *([caller] if has_memory(caller) else [])]
    ) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def shared_names() -> set[str]:
    """The names of tpfx's in shared memory."""
    return {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith("tpfx")}


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:  # it has ended
        return ""
