"""What the host takes for an op, a run and a small all-reduce, and the first attention at a new length."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from tpfx.runtime.mesh import Mesh
from tpfx.runtime.thread_runtime import Runtime

from ..turns import machine as cpu
from .right import kernel
from .tiny import Where

aten, c10d = torch.ops.aten, torch.ops._c10d_functional


def machine(where: Where) -> dict[str, Any]:
    """What this was measured on."""
    found: dict[str, Any] = {**cpu(), "torch": torch.__version__}
    if where.on_gpu:
        found |= {"gpu": torch.cuda.get_device_name(0), "cuda": torch.version.cuda}
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def ops(where: Where, threads: int) -> dict[str, Any]:
    """Microseconds an op, in threads that share Python's lock: ten, in the mix of a Llama's layer."""
    rounds, barrier, took = 30 if where.small else 300, threading.Barrier(threads), [0.0] * threads

    def work(at: int) -> None:
        if where.on_gpu:
            torch.cuda.set_stream(torch.cuda.Stream())
        x, w = torch.ones(1, 64, device=where.first), torch.ones(64, 64, device=where.first)
        with torch.no_grad():
            ten_ops(x, w), barrier.wait()
            start = time.perf_counter()
            for _ in range(rounds):
                ten_ops(x, w)
            took[at] = time.perf_counter() - start

    workers = [threading.Thread(target=work, args=(at,)) for at in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    where.wait()
    return {"µs an op": round(max(took) / rounds / 10 * 1e6, 2)}


def ten_ops(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Seven small ones, two views, a product."""
    y = aten.mul.Tensor(aten.add.Tensor(aten.mul.Tensor(x, x), x), x)
    aten.transpose.int(aten.reshape.default(y, [1, 1, 64]), 0, 1)
    y = aten.mul.Tensor(aten.add.Tensor(aten.neg.default(y), x), x)
    out: torch.Tensor = aten.linear.default(aten.silu.default(y), w)
    return out


def _timed(where: Where, calls: Callable[[Mesh], list[Callable[[], Any]]], runs: int, repeats: int) -> float:
    """Microseconds of one repeat, in runs of calls that repeat something."""
    mesh = Mesh(tuple(torch.device(device) for device in where.devices))
    runtime, given = Runtime(mesh, 30.0), calls(mesh)
    for _ in range(3):
        runtime.run(given)
    where.wait()
    start = time.perf_counter()
    for _ in range(runs):
        runtime.run(given)
    where.wait()
    took = time.perf_counter() - start
    runtime.close()
    return round(took / runs / repeats * 1e6, 1)


def empty_run(where: Where) -> dict[str, Any]:
    """Microseconds of a run that does nothing: threads that wake, events."""
    return {"µs": _timed(where, lambda mesh: [lambda: None] * mesh.size, 300, 1)}


def small_all_reduce(where: Where) -> dict[str, Any]:
    """Microseconds of 8 KiB between the ranks' threads."""
    repeats = 300

    def calls(mesh: Mesh) -> list[Callable[[], Any]]:
        def of(rank: int) -> Callable[[], Any]:
            value = torch.ones(4096, dtype=torch.bfloat16, device=mesh.devices[rank])

            def run() -> None:
                for _ in range(repeats):
                    c10d.wait_tensor(c10d.all_reduce_(value, "avg", mesh.group_name(rank)))

            return run

        return [of(rank) for rank in range(mesh.size)]

    return {"µs": _timed(where, calls, 1, repeats)}


def new_lengths(where: Where) -> dict[str, Any]:
    """Milliseconds of the first attention of one token at each number of keys: cuDNN may plan anew."""
    found = {}
    for name in (None, "CUDNN_ATTENTION", "FLASH_ATTENTION") if where.on_gpu else (None,):
        took = []
        for length in range(200, 216):
            q = torch.randn(1, 32, 1, 64, dtype=torch.bfloat16, device=where.first)
            k, v = (torch.randn(1, 8, length, 64, dtype=q.dtype, device=where.first) for _ in range(2))
            where.wait()
            start = time.perf_counter()
            with kernel(name):
                torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            where.wait()
            took.append((time.perf_counter() - start) * 1e3)
        found[name or "torch's choice"] = round(sorted(took[3:])[6], 3)
    return {"ms": found}
