"""The runtime of a process that owns one rank of several, as under torchrun: no threads are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ..errors import TpfxError
from ..torch_internals.distributed import below_autograd
from .mesh import Mesh
from .thread_runtime import node_of
from .watch import waiting

T = TypeVar("T")


class ProcessRuntime:
    """Runs the graph of the one rank that this process owns, where it is called.

    Args:
        mesh: of a process group.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def run(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Run the one call.

        Raises:
            Exception: what it raises, with a note naming the rank and the node. Where a collective fails,
                since another process has ended or is late, that is the group's own error.
        """
        if len(calls) != 1:
            raise TpfxError(f"{len(calls)} calls for the one rank of this process; pass one")
        rank = self.mesh.owned[0]
        device = self.mesh.devices[rank]
        try:
            with waiting("running a graph"), torch.autocast(device.type, enabled=False):
                if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
                    return [calls[0]()]
                with below_autograd():
                    return [calls[0]()]
        except Exception as error:
            node = node_of(error.__traceback__)
            error.add_note(f"on rank {rank} ({device})" + (f", in node {node}" if node else ""))
            raise

    def native_meeting(self) -> None:
        """None: the ranks find each other through the group."""

    def close(self) -> None:
        """Nothing to end: the group is the caller's."""
