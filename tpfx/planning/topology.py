"""What collectives and arithmetic cost: the numbers that the chooser weighs plans with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..errors import InputError


@dataclass(frozen=True)
class Topology:
    """Costs of a tensor-parallel group; the defaults are the order of an NVLink machine.

    Attributes:
        latency: seconds that any collective takes.
        bandwidth: bytes a second that each rank sends.
        flops: floating-point operations a second of one device.
        memory: bytes a second that one device reads or writes.
        launch: seconds that a device spends on the smallest op.
    """

    latency: float = 20e-6
    bandwidth: float = 100e9
    flops: float = 100e12
    memory: float = 1e12
    launch: float = 5e-6

    def all_reduce(self, size: int, ranks: int) -> float:
        """Seconds to sum `size` bytes over ranks (ring: twice (n-1)/n of them cross each link)."""
        return self.latency + 2 * (ranks - 1) / ranks * size / self.bandwidth

    def all_gather(self, size: int, ranks: int) -> float:
        """Seconds until every rank has all of `size` bytes, the shards laid in their places (a copy each)."""
        placed = 2 * size / self.memory + ranks * self.launch
        return self.latency + (ranks - 1) / ranks * size / self.bandwidth + placed

    def gather(self, size: int, ranks: int) -> float:
        """Seconds until one rank, the caller's, has all of `size` bytes."""
        return self.latency + (ranks - 1) / ranks * size / self.bandwidth

    def op(self, flops: float, size: float) -> float:
        """Seconds of one op that does so many operations and moves so many bytes, whichever takes longer."""
        return max(flops / self.flops, size / self.memory)

    def save(self, path: str | Path) -> None:
        """Write the numbers as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def load(path: str | Path) -> Topology:
        """Read what `save` has written; what it leaves out is as by default.

        Raises:
            InputError: there is no such file, or it has other fields, or they are no positive numbers.
        """
        try:
            found = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read the topology {path}: {error}") from error
        known = [field.name for field in fields(Topology)]
        if not isinstance(found, dict) or set(found) - set(known):
            raise InputError(f"{path} is no topology: it is an object with {', '.join(known)}")
        for name, value in found.items():
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
                raise InputError(f"{path}: {name} is {value!r}; it must be a number above 0")
        return Topology(**found)


# Peak rates of data sheets, dense 16-bit arithmetic, times what is usually reached of them: 0.7 of the
# arithmetic, 0.8 of the memory, 0.8 of one direction of the links.
TOPOLOGIES = {
    "h100-nvlink": Topology(12e-6, 0.8 * 450e9, 0.7 * 989e12, 0.8 * 3.35e12, 3e-6),
    "a100-nvlink": Topology(15e-6, 0.8 * 300e9, 0.7 * 312e12, 0.8 * 2.04e12, 4e-6),
    "pcie4": Topology(30e-6, 0.8 * 32e9, 0.7 * 165e12, 0.8 * 1.0e12, 5e-6),
}


def topology_of(name: str) -> Topology:
    """The topology that a name, or a file, stands for; "default" for that of `Topology()`.

    Raises:
        InputError: there is no such name and no such file.
    """
    if name == "default":
        return Topology()
    if name in TOPOLOGIES:
        return TOPOLOGIES[name]
    if not Path(name).exists():
        raise InputError(
            f"{name} is no topology that tpfx knows ({', '.join(TOPOLOGIES)}), and no file; tpfx topology "
            "measure writes one"
        )
    return Topology.load(name)
