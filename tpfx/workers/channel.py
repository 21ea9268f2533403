"""What the caller and a worker say to each other.

channel.send("run", 3, ...)      # whole, or not at all
channel.receive()                # ("done", ...); None once the other has ended

What is long lies in the memory that both share, and its place is sent.
"""

from __future__ import annotations

import contextlib
import pickle
import socket
from typing import Any

LONG = 32 << 10  # bytes
_MOST = 64 << 10


class Channel:
    """One end of a connection between two processes.

    Args:
        end: a socket that keeps messages apart.
        arena: the extension's `Arena`, which both have.
    """

    def __init__(self, end: socket.socket, arena: Any) -> None:
        self._end, self._arena = end, arena
        self._kept: Any = None  # what the other may still read

    def send(self, *parts: Any) -> None:
        """Say something.

        Raises:
            OSError: the other has ended.
        """
        text = pickle.dumps(parts)
        if len(text) > LONG:
            self._kept = self._arena.write(text)
            text = pickle.dumps(self._kept.place)
        self._end.send(text)

    def receive(self, timeout: float | None = None) -> tuple[Any, ...] | None:
        """What the other says; None if it has ended.

        Raises:
            TimeoutError: it has said nothing for `timeout` seconds.
        """
        self._end.settimeout(timeout)
        try:
            text = self._end.recv(_MOST)
        except ConnectionResetError:
            text = b""
        if not text:
            return None
        said: tuple[Any, ...] = pickle.loads(text)
        if isinstance(said[0], int):
            said = pickle.loads(self._arena.read(*said))
        return said

    def close(self) -> None:
        """Let the other find that this one has ended."""
        with contextlib.suppress(OSError):  # it may have ended first
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()
