"""What a model is compiled for: what `tpfx.compile` and the options of `backend="tpfx"` have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.distributed import ProcessGroup

from ..lowering.device_compiler import check_device_compiler
from ..planning import Topology
from ..runtime.mesh import Mesh
from ..runtime.processes import mesh_from


@dataclass(frozen=True)
class Target:
    """The devices and how they are used, as `tpfx.compile` takes them.

    Attributes:
        devices: a list, an int, a DeviceMesh, or None.
        topology: what collectives and arithmetic cost, for the chooser.
        device_compiler: one of `DEVICE_COMPILERS`.
        timeout: seconds that a rank waits for the others.
        group: the processes that have such devices each.

    Raises:
        TpfxError: the device compiler is unknown.
    """

    devices: Any = None
    topology: Topology | None = None
    device_compiler: str = "native"
    timeout: float = 300.0
    group: ProcessGroup | None = None

    def __post_init__(self) -> None:
        check_device_compiler(self.device_compiler)
        if isinstance(self.devices, list):  # so that it can be a key
            object.__setattr__(self, "devices", tuple(self.devices))

    def mesh(self) -> Mesh:
        """The ranks.

        Raises:
            DeviceError: the devices do not make a mesh.
        """
        return mesh_from(self.devices, self.timeout, self.group)
