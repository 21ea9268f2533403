"""What collectives and arithmetic cost: the numbers that the chooser weighs plans with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..console.files import write
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
        """Write the numbers as JSON.

        Raises:
            FileError: the file cannot be written.
        """
        write(path, json.dumps(asdict(self), indent=1) + "\n")

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
            raise InputError(
                f"{path} is no topology: it is an object with {', '.join(known)}; tpfx topology "
                "measure writes one"
            )
        for name, value in found.items():
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
                raise InputError(f"{path}: {name} is {value!r}; it must be a number above 0")
        return Topology(**found)
