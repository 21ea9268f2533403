"""Collectives between processes that own several ranks each, and numbers that all of them have a part of."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support.processes import launch

PROGRAM = """
import sys, torch, torch.distributed as dist
from tpfx.runtime.mesh import Mesh
from tpfx.runtime.processes import from_all, mesh_from
from tpfx.runtime.thread_runtime import Runtime

OPS, OUT, SHARES = torch.ops._c10d_functional, sys.argv[1], (2, 1)
dist.init_process_group("gloo")
process = dist.get_rank()
mesh = mesh_from(["cpu"] * SHARES[process], 60.0, dist.group.WORLD)
assert (mesh.size, mesh.shares, mesh.firsts, mesh.owned) == (3, (2, 1), (0, 2), ((0, 1), (2,))[process])
runtime = Runtime(mesh, 60.0)

def value(rank, dtype):
    return torch.randint(-9, 9, (6, 5), generator=torch.Generator().manual_seed(rank)).to(dtype)

def of(rank):
    def call():
        name, found = mesh.group_name(rank), {}
        for dtype in (torch.float32, torch.bfloat16, torch.int64):
            for how in ("sum", "max", "min", "product", *(["avg"] if dtype.is_floating_point else [])):
                x = value(rank, dtype).t()
                found[how, dtype] = OPS.wait_tensor(OPS.all_reduce(x, how, name))
        x = value(rank, torch.float32)
        found["gather"] = OPS.wait_tensor(OPS.all_gather_into_tensor(x, 3, name))
        found["scatter"] = OPS.wait_tensor(OPS.reduce_scatter_tensor(x, "sum", 3, name))
        found["broadcast"] = [OPS.wait_tensor(OPS.broadcast(x, root, name)) for root in range(3)]
        return found
    return call

found = runtime.run([of(rank) for rank in mesh.owned])
rows = torch.tensor([[float(rank)] for rank in mesh.owned])
found[0]["rows"] = from_all(rows, mesh)
torch.save(found, f"{OUT}.{process}")
"""


def value(rank: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randint(-9, 9, (6, 5), generator=torch.Generator().manual_seed(rank)).to(dtype)


def test_collectives_between_owners_of_several_ranks(tmp_path: Path) -> None:
    launch(2, "-c", PROGRAM, str(tmp_path / "out"))
    one, two = (torch.load(tmp_path / f"out.{process}") for process in range(2))
    reductions = {"sum": torch.sum, "max": torch.amax, "min": torch.amin, "product": torch.prod}
    whole = torch.stack([value(rank, torch.float32) for rank in range(3)])
    for rank, found in enumerate([*one, *two]):
        for how, reduction in reductions.items():
            for dtype in (torch.float32, torch.bfloat16, torch.int64):
                expected = reduction(whole.double(), 0).t().to(dtype)
                assert torch.equal(found[how, dtype], expected), (how, dtype)
        torch.testing.assert_close(found["avg", torch.float32], whole.mean(0).t())
        assert torch.equal(found["gather"], whole.flatten(0, 1))
        assert torch.equal(found["scatter"], whole.sum(0)[2 * rank : 2 * rank + 2])
        assert all(torch.equal(sent, whole[root]) for root, sent in enumerate(found["broadcast"]))
    for found in (one, two):
        assert found[0]["rows"].tolist() == [[0.0], [1.0], [2.0]]


REFUSED = """
import pytest, torch, torch.distributed as dist, tpfx
from tpfx.runtime.processes import mesh_from
from tpfx.runtime.thread_runtime import Runtime
dist.init_process_group("gloo")
mesh = mesh_from(2, 60.0, dist.group.WORLD)
call = lambda rank: lambda: torch.ops._c10d_functional.all_to_all_single(
    torch.zeros(4), [1] * 4, [1] * 4, mesh.group_name(rank))
with pytest.raises(tpfx.TpfxError, match="start one process for each rank"):
    Runtime(mesh, 60.0).run([call(rank) for rank in mesh.owned])
"""


def test_what_it_cannot_do() -> None:
    launch(2, "-c", REFUSED)
