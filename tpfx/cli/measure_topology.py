"""Measure what collectives and arithmetic cost on the devices at hand.

    measure(["cuda:0", "cuda:1"]).save("here.json")

Collectives are those of the ranks' own process group. Each number is the best of several rounds: what the
devices can do, not what they did while something else ran.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..planning import Topology
from ..runtime.mesh import Mesh, parse_devices
from ..runtime.thread_runtime import Runtime

_SMALL, _LARGE = 1 << 10, 1 << 24  # elements of float32: 4 KiB and 64 MiB
_ROUNDS = 5


def measure(devices: int | Sequence[Any] | None = None, timeout: float = 60.0) -> Topology:
    """The topology of some devices.

    Args:
        devices: as `tpfx.compile` takes them.
        timeout: seconds that a rank waits for the others.

    Raises:
        DeviceError: there are no such devices.
    """
    mesh = Mesh(parse_devices(devices))
    runtime = Runtime(mesh, timeout)
    try:
        first = mesh.devices[0]
        launch = _best(lambda: torch.ones(1, device=first).add_(1), first, 200)
        short = _all_reduce(runtime, mesh, _SMALL) if mesh.size > 1 else Topology.latency
        long = _all_reduce(runtime, mesh, _LARGE) if mesh.size > 1 else 0.0
    finally:
        runtime.close()
    crossed = 2 * (mesh.size - 1) / mesh.size * 4 * _LARGE
    bandwidth = crossed / max(long - short, 1e-9) if mesh.size > 1 else Topology.bandwidth
    return Topology(short, bandwidth, _flops(first), _memory(first), launch)


def _all_reduce(runtime: Runtime, mesh: Mesh, elements: int) -> float:
    """Seconds of an all-reduce of all ranks."""
    values = [torch.zeros(elements, device=device) for device in mesh.devices]
    repeats = 20 if elements == _SMALL else 4

    def of(rank: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(repeats):
                summed = torch.ops._c10d_functional.all_reduce_(values[rank], "sum", mesh.group_name(rank))
                torch.ops._c10d_functional.wait_tensor(summed)
            _finish(mesh.devices[rank])

        return run

    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        runtime.run([of(rank) for rank in mesh.owned])
        best = min(best, (time.perf_counter() - start) / repeats)
    return best


def _flops(device: torch.device) -> float:
    """Operations a second of a product of matrices, in the 16-bit type of GPUs, or float32 on CPUs."""
    size, dtype = (4096, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    left = torch.ones(size, size, device=device, dtype=dtype)
    return 2.0 * size**3 / _best(lambda: left @ left, device, 4)


def _memory(device: torch.device) -> float:
    """Bytes a second that are read and written."""
    value = torch.zeros(_LARGE, device=device)
    other = torch.empty_like(value)
    return 2.0 * value.nbytes / _best(lambda: other.copy_(value), device, 4)


def _best(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    best = float("inf")
    for _ in range(_ROUNDS):
        _finish(device)
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        _finish(device)
        best = min(best, (time.perf_counter() - start) / repeats)
    return best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
