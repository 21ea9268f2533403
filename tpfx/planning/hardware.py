"""Machines by name: what a device computes, moves and holds, and what a message between two costs.

hardware = hardware_of("a100-nvlink")       # or a file that `Topology.save` has written
hardware.topology, hardware.memory          # what plans are weighed with; bytes of one device
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError
from .topology import Topology

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """Devices of one kind and the links between them.

    Attributes:
        title: what people call it.
        topology: what collectives and arithmetic cost.
        memory: bytes of one device; None where nobody has said.
        source: where the figures are from.
    """

    title: str
    topology: Topology
    memory: int | None
    source: str

    @property
    def usable(self) -> int | None:
        """Bytes that are left of a device's memory by its driver, NCCL and an allocator's gaps: 95%, but at
        least 1 GiB less."""
        return None if self.memory is None else self.memory - max(GIB, self.memory // 20)


def _made(
    title: str,
    link: float,
    tflops: float,
    memory: float,
    gib: float,
    source: str,
    micros: tuple[float, float],
) -> Hardware:
    """Peak rates of a data sheet times what is usually reached of them: 0.7 of the arithmetic, 0.8 of the
    memory's, 0.8 of one direction of the links.

    Args:
        title, source: as `Hardware` has them.
        link: GB/s that a device sends to all others together.
        tflops: dense 16-bit products, summed in float32.
        memory: TB/s of a device's memory.
        gib: of a device. In servers, error correction takes a sixteenth of GDDR6: a T4 of 16 GB has 15 GiB.
        micros: microseconds of the shortest collective, and of the smallest op.
    """
    latency, launch = micros
    topology = Topology(
        latency * 1e-6, 0.8 * link * 1e9, 0.7 * tflops * 1e12, 0.8 * memory * 1e12, launch * 1e-6
    )
    return Hardware(title, topology, int(gib * GIB), source)


_NVLINK, _PCIE, _HOST = (12.0, 3.0), (20.0, 4.0), (30.0, 5.0)

# GeForce cards have no way from one to another but through the host's memory, so that a message takes the
# bus twice. Of two hosts a ring has a part in each network adapter: 400 Gbit/s a device.
HARDWARE = {
    "b200-nvlink": _made("B200", 900, 2250, 8.0, 179, "NVIDIA DGX B200 data sheet, a GPU", _NVLINK),
    "h200-nvlink": _made("H200", 450, 989, 4.8, 140, "NVIDIA H200 data sheet, SXM", _NVLINK),
    "h100-nvlink": _made("H100", 450, 989, 3.35, 80, "NVIDIA H100 data sheet, SXM", _NVLINK),
    "h100-nvlink-2-hosts": _made(
        "H100 on two hosts", 50, 989, 3.35, 80, "the same; NVIDIA ConnectX-7 data sheet", (30.0, 3.0)
    ),
    "h100-pcie": _made("H100 PCIe", 64, 756, 2.0, 80, "NVIDIA H100 data sheet, PCIe 5.0", _PCIE),
    "a100-nvlink": _made("A100 80 GB", 300, 312, 2.04, 80, "NVIDIA A100 data sheet, SXM", (15.0, 4.0)),
    "a100-40-nvlink": _made("A100 40 GB", 300, 312, 1.555, 40, "NVIDIA A100 data sheet, SXM", (15.0, 4.0)),
    "l40s": _made("L40S", 32, 362, 0.864, 45, "NVIDIA L40S data sheet, PCIe 4.0", _PCIE),
    "a10": _made("A10", 32, 125, 0.6, 22.5, "NVIDIA A10 data sheet, PCIe 4.0", _PCIE),
    "l4": _made("L4", 32, 121, 0.3, 22.5, "NVIDIA L4 data sheet, PCIe 4.0", _PCIE),
    "t4": _made("T4", 16, 65, 0.32, 15, "NVIDIA T4 data sheet, PCIe 3.0; float16 alone", _HOST),
    "rtx-3090": _made("RTX 3090", 16, 71, 0.936, 24, "NVIDIA GA102 whitepaper, PCIe 4.0", _HOST),
    "rtx-4090": _made("RTX 4090", 16, 165, 1.008, 24, "NVIDIA Ada whitepaper, PCIe 4.0", _HOST),
    "rtx-5090": _made("RTX 5090", 32, 209, 1.792, 32, "NVIDIA RTX Blackwell whitepaper, PCIe 5.0", _HOST),
    "mi300x": _made("MI300X", 448, 1307, 5.3, 192, "AMD MI300X data sheet, seven links", (15.0, 4.0)),
    "pcie4": replace(
        _made("card on PCIe 4.0", 32, 165, 1.0, 0, "that of an RTX 4090, with peer access", _HOST),
        memory=None,
    ),
}


def hardware_of(name: str, memory: float | None = None) -> Hardware:
    """The machine that a name, or a file with a topology, stands for; "default" for that of `Topology()`.

    Args:
        name: as the user wrote it.
        memory: GiB of one device, where it is not that of the name.

    Raises:
        InputError: there is no such name and no such file, or no memory of that size.
    """
    if memory is not None and not memory > 0:
        raise InputError(f"--memory {memory:g}: it must be above 0 GiB")
    if name in HARDWARE:
        found = HARDWARE[name]
    elif name == "default":
        found = Hardware("device", Topology(), None, "the order of an NVLink machine")
    elif Path(name).exists():
        found = Hardware("device", Topology.load(name), None, name)
    else:
        raise InputError(
            f"{name} is no topology that tpfx knows ({', '.join(HARDWARE)}), and no file; "
            "tpfx topology measure writes one"
        )
    return found if memory is None else replace(found, memory=int(memory * GIB))


def topology_of(name: str) -> Topology:
    """What collectives and arithmetic cost on the machine that `hardware_of` finds by a name."""
    return hardware_of(name).topology
