"""The mesh: the ordered devices of one tensor-parallel group, and what a user may write for them.

mesh = Mesh(parse_devices(["cuda:0", "cuda:1"]))
mesh.size                # 2
mesh.group_name(1)       # the name under which rank 1's collectives find their process group
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import DeviceError

DeviceSpec = str | torch.device | int

_serials = itertools.count()


@dataclass(frozen=True, eq=False)
class Mesh:
    """The devices of ranks 0..n-1, the ranks that this process owns, and the group name of every rank.

    `owned` defaults to all ranks (one process drives all devices); a process under torchrun owns one.
    `names` defaults to names that no other mesh of this process has. Where several processes own the ranks,
    `group` is theirs, `shares` how many each of them owns, in order, and `replicas`, if any, the group over
    which gradients are averaged. `apart`: the ranks but the first are processes that this one has started.
    """

    devices: tuple[torch.device, ...]
    owned: tuple[int, ...] = ()
    names: tuple[str, ...] = field(default=(), repr=False)
    group: Any = field(default=None, repr=False)
    shares: tuple[int, ...] = field(default=(), repr=False)
    replicas: Any = field(default=None, repr=False)
    apart: bool = False

    def __post_init__(self) -> None:
        if not self.devices:
            raise DeviceError("a mesh needs at least one device, got none; pass for instance ['cpu', 'cpu']")
        if not self.owned:
            object.__setattr__(self, "owned", tuple(range(self.size)))
        if not self.shares:
            object.__setattr__(self, "shares", (1,) * self.size if self.group else (self.size,))
        if not self.names:
            serial = next(_serials)
            object.__setattr__(self, "names", tuple(f"tpfx:{serial}:{rank}" for rank in range(self.size)))
        if len(self.names) != self.size or not all(0 <= rank < self.size for rank in self.owned):
            raise DeviceError(
                f"a mesh of {self.size} devices needs {self.size} group names and ranks in "
                f"0..{self.size - 1}, got {len(self.names)} names and ranks {self.owned}"
            )

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.devices)

    @property
    def gpus(self) -> list[torch.device]:
        """The GPUs of this process."""
        own = {self.devices[rank] for rank in self.owned}
        return sorted((device for device in own if device.type == "cuda"), key=str)

    @property
    def firsts(self) -> tuple[int, ...]:
        """The first rank of each process."""
        return tuple(itertools.accumulate(self.shares[:-1], initial=0))

    @property
    def rank_is_process(self) -> bool:
        """Whether the ranks are processes, so that no threads are needed."""
        return self.group is not None and set(self.shares) == {1}

    @property
    def memories(self) -> int:
        """In how many places this process's ranks keep what all of them have."""
        return len(self.owned) if self.apart else len(set(self.devices))

    def same_as(self, other: "Mesh") -> bool:
        """Whether two meshes have the same ranks on the same devices, of two models perhaps."""
        return self is other or (self.devices, self.owned) == (other.devices, other.owned)

    def group_name(self, rank: int) -> str:
        """The name under which the functional collectives of `rank` find their process group."""
        return self.names[rank]


def is_automatic(devices: Any) -> bool:
    """Whether the devices are those that there are."""
    return devices is None or (isinstance(devices, str) and devices == "auto")


def parse_devices(devices: int | Sequence[DeviceSpec] | None = None) -> tuple[torch.device, ...]:
    """One device per rank, from what a user may write.

    None or "auto": every visible CUDA GPU. An int n: the first n GPUs, or n ranks on the CPU where there is
    none. A list of names, torch.devices or GPU indices, repeats allowed: those.

    Raises:
        DeviceError: nothing to run on, an unknown or absent device, or devices of different kinds.

    >>> parse_devices(["cpu", "cpu"])
    (device(type='cpu'), device(type='cpu'))
    """
    if is_automatic(devices):
        return _all_gpus()
    if isinstance(devices, bool):
        raise DeviceError(f"devices={devices!r} is a bool; pass a list such as ['cuda:0', 'cuda:1']")
    if isinstance(devices, int):
        return _first_devices(devices)
    if isinstance(devices, (str, torch.device)):
        raise DeviceError(
            f"devices={str(devices)!r} is one device, but a model is split over several: a list has one "
            "device per rank, such as ['cuda:0', 'cuda:1'] or ['cpu', 'cpu']; an int and 'auto' do too"
        )
    if not isinstance(devices, (list, tuple)):
        raise DeviceError(
            f"devices must be a list, an int or None, got {type(devices).__name__} {devices!r}; "
            "pass a list with one device per rank, such as ['cuda:0', 'cuda:1'] or ['cpu', 'cpu']"
        )
    if not devices:
        raise DeviceError("devices is an empty list; pass one device per rank, such as ['cuda:0', 'cuda:1']")
    parsed = tuple(_parse_device(spec, f"devices[{i}] = {spec!r}") for i, spec in enumerate(devices))
    _require_one_kind(parsed)
    return parsed


def _gpu_count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _all_gpus() -> tuple[torch.device, ...]:
    count = _gpu_count()
    if count == 0:
        raise DeviceError(
            "no devices, or 'auto', means every visible CUDA GPU, and there is none; "
            "pass devices, for instance ['cpu', 'cpu'], or check CUDA_VISIBLE_DEVICES"
        )
    return tuple(torch.device("cuda", index) for index in range(count))


def _first_devices(count: int) -> tuple[torch.device, ...]:
    if count <= 0:
        raise DeviceError(f"devices={count}: the number of devices must be at least 1")
    gpus = _gpu_count()
    if gpus == 0:
        return (torch.device("cpu"),) * count
    if count > gpus:
        raise DeviceError(
            f"devices={count}, but only {gpus} CUDA GPU(s) are visible; pass at most {gpus}, "
            f"or a list with repeats to let ranks share a GPU, such as {['cuda:0'] * count}"
        )
    return tuple(torch.device("cuda", index) for index in range(count))


def _parse_device(spec: object, where: str) -> torch.device:
    if isinstance(spec, bool) or not isinstance(spec, (str, int, torch.device)):
        raise DeviceError(
            f"{where} is a {type(spec).__name__}; a device is a name, a torch.device or a GPU index"
        )
    if isinstance(spec, int):
        return _parse_gpu(spec, where)
    try:
        device = torch.device(spec)
    except RuntimeError as error:
        raise DeviceError(f"{where} is not a device; use 'cpu', 'cuda' or 'cuda:<index>'") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise DeviceError(f"{where}: a model cannot run on a {device.type} device; use CUDA GPUs or 'cpu'")
    return _parse_gpu(device.index, where)


def _parse_gpu(index: int | None, where: str) -> torch.device:
    gpus = _gpu_count()
    if gpus == 0:
        raise DeviceError(f"{where}: this process sees no CUDA GPU; use 'cpu', or check CUDA_VISIBLE_DEVICES")
    if index is None:
        index = torch.cuda.current_device()
    if not 0 <= index < gpus:
        raise DeviceError(f"{where}: {gpus} CUDA GPU(s) are visible, with indices 0..{gpus - 1}")
    return torch.device("cuda", index)


def _require_one_kind(devices: tuple[torch.device, ...]) -> None:
    first = devices[0]
    for rank, device in enumerate(devices):
        if device.type != first.type:
            raise DeviceError(
                f"devices[0] is {first} and devices[{rank}] is {device}: the devices of a mesh must be of "
                "one kind; pass only GPUs or only 'cpu'"
            )
