"""The runtime of a process that owns one rank of several, as under torchrun: no threads are needed.

Programs of the native executor meet in shared memory, where the processes are on one host and have no GPUs;
everything else goes through the process group.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ..errors import TpfxError
from ..torch_internals.distributed import below_autograd, group_timeout
from .mesh import Mesh
from .shared_memory import SharedMeeting, known_meeting, shared_meeting
from .thread_runtime import node_of
from .watch import waiting

T = TypeVar("T")


class ProcessRuntime:
    """Runs the graph of the one rank that this process owns, where it is called.

    Args:
        mesh: of a process group.
        timeout: seconds that a rank waits for the others in shared memory, if its group does not say.
    """

    def __init__(self, mesh: Mesh, timeout: float = 300.0) -> None:
        self.mesh, self.timeout = mesh, timeout
        self._lock = threading.RLock()

    def run(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Run the one call.

        Raises:
            Exception: what it raises, with a note naming the rank and the node. Where a collective of the
                group fails, since another process has ended or is late, that is the group's own error.
        """
        if len(calls) != 1:
            raise TpfxError(f"{len(calls)} calls for the one rank of this process; pass one")
        rank = self.mesh.owned[0]
        device = self.mesh.devices[rank]
        meeting = known_meeting(self.mesh)
        run = contextlib.nullcontext() if meeting is None else meeting.run()
        try:
            with waiting("running a graph"), run, torch.autocast(device.type, enabled=False):
                if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
                    return [calls[0]()]
                with below_autograd():
                    return [calls[0]()]
        except Exception as error:
            node = node_of(error.__traceback__)
            error.add_note(f"on rank {rank} ({device})" + (f", in node {node}" if node else ""))
            raise

    def alone(self) -> contextlib.AbstractContextManager[object]:
        """What runs inside keeps out what other threads run so."""
        return self._lock

    def native_meeting(self) -> SharedMeeting | None:
        """Where the native executor's ranks meet; None where they find each other through the group.

        Raises:
            NoExecutor: the extension cannot be built here.
        """
        return shared_meeting(self.mesh, group_timeout(self.mesh.group) or self.timeout)

    def close(self) -> None:
        """Nothing to end: the group is the caller's."""
