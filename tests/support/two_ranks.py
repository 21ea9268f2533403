"""What two processes do in one launch, one check after the other, and what each of them found.

python -m tests.support.two_ranks DIRECTORY     # RANK 0 and 1; saves DIRECTORY/<check>.<rank>

A check whose error is not caught is saved as its traceback. The last one ends both processes with an error.
"""

from __future__ import annotations

import copy
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch._dispatch.python import enable_python_dispatcher
from torch.distributed.device_mesh import init_device_mesh
from torch.fx import Graph, GraphModule

import tpfx
from tests.support import spmd
from tests.support.models import inputs, tiny
from tests.support.nets import Mlp, TwoTowers
from tests.support.random_nets import Drawing, steps
from tests.support.tape import Tapes
from tpfx.execution.cuda_graphs import all_have_recorded
from tpfx.frontend import session
from tpfx.native.rank_program import RankProgram
from tpfx.runtime import shared_memory
from tpfx.runtime.mesh import Mesh
from tpfx.runtime.process_runtime import ProcessRuntime
from tpfx.runtime.processes import from_all, mesh_from, require_same, world_mesh
from tpfx.runtime.thread_runtime import Runtime

SHARES = (2, 1)  # the ranks of each process, where a process owns several
DTYPES = (torch.float32, torch.bfloat16, torch.int64)


def same_program(_: Path) -> dict[str, Any]:
    """As torchrun would start it: `compile` finds the other process."""
    return spmd.compiled("gpt2", layers=1)


def saved(folder: Path) -> None:
    """A checkpoint for other numbers of processes to load."""
    model = tpfx.compile(tiny("llama", num_hidden_layers=1))
    dcp.save(model.state_dict(), checkpoint_id=folder / "checkpoint")


def device_meshes(_: Path) -> None:
    with pytest.raises(tpfx.DeviceError, match=r"3 dimensions|one is called"):
        tpfx.compile(tiny("gpt2"), init_device_mesh("cpu", (1, 1, 2), mesh_dim_names=("a", "b", "tp")))
    with pytest.raises(tpfx.DeviceError, match="one is called"):
        tpfx.compile(tiny("gpt2"), init_device_mesh("cpu", (1, 2), mesh_dim_names=("a", "b")))
    model = tpfx.compile(tiny("gpt2", num_hidden_layers=1), init_device_mesh("cpu", (2,)))
    assert len(tpfx.report(model).devices) == 2
    assert len(model.lm_head.weight.shards) == 1
    group = dist.group.WORLD
    with pytest.raises(tpfx.DeviceError, match="leave group out"):
        tpfx.compile(tiny("gpt2"), init_device_mesh("cpu", (2,)), group=group)
    owner = tpfx.compile(tiny("gpt2", num_hidden_layers=1), 2, group=group)
    assert len(tpfx.report(owner).devices) == 4
    plain, given = tiny("gpt2", num_hidden_layers=1), inputs(owner)
    loss, expected = (each(**given, labels=given["input_ids"]).loss for each in (owner, plain))
    loss.backward(), expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(owner.lm_head.weight.grad.full(), plain.lm_head.weight.grad)
    assert owner.lm_head.weight.mesh.owned == ((0, 1), (2, 3))[dist.get_rank()]
    assert repr(model.lm_head.weight).startswith("ShardedTensor(") and "2 devices" in str(tpfx.report(model))


def value(rank: int, dtype: torch.dtype) -> torch.Tensor:
    """What a rank gives to a collective."""
    return torch.randint(-9, 9, (6, 5), generator=torch.Generator().manual_seed(rank)).to(dtype)


def collectives(_: Path) -> list[dict[Any, Any]]:
    """What each collective gives each rank of this process, and rows that all have a part of."""
    mesh = mesh_from(["cpu"] * SHARES[dist.get_rank()], 60.0, dist.group.WORLD)
    owned = ((0, 1), (2,))[dist.get_rank()]
    assert (mesh.size, mesh.shares, mesh.firsts, mesh.owned) == (3, SHARES, (0, 2), owned)
    runtime = Runtime(mesh, 60.0)
    found = runtime.run([_collectives_of(rank, mesh.group_name(rank)) for rank in mesh.owned])
    found[0]["rows"] = from_all(torch.tensor([[float(rank)] for rank in mesh.owned]), mesh)
    runtime.close()
    return found


def _collectives_of(rank: int, name: str) -> Callable[[], dict[Any, Any]]:
    ops = torch.ops._c10d_functional

    def call() -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for dtype in DTYPES:
            for how in ("sum", "max", "min", "product", *(["avg"] if dtype.is_floating_point else [])):
                x = value(rank, dtype).t()
                found[how, dtype] = ops.wait_tensor(ops.all_reduce(x, how, name))
        x = value(rank, torch.float32)
        found["gather"] = ops.wait_tensor(ops.all_gather_into_tensor(x, 3, name))
        found["scatter"] = ops.wait_tensor(ops.reduce_scatter_tensor(x, "sum", 3, name))
        found["broadcast"] = [ops.wait_tensor(ops.broadcast(x, root, name)) for root in range(3)]
        return found

    return call


c10d = torch.ops._c10d_functional
# Ops, and what follows their tensor.
IN_MEMORY = [(c10d.all_gather_into_tensor.default, 2), *((c10d.broadcast.default, root) for root in (0, 1))]
IN_MEMORY += [(c10d.all_to_all_single.default, [16, 8], [16, 8]), (c10d.all_reduce_.default, "sum")]
IN_MEMORY += [(c10d.all_reduce.default, how) for how in ("sum", "avg", "max", "min", "product")]
IN_MEMORY += [(c10d.reduce_scatter_tensor.default, how, 2) for how in ("sum", "avg", "max")]


def program(mesh: Mesh, op: Any, *args: Any, before: Callable[..., Any] | None = None) -> RankProgram:
    """A graph of one collective, after a call in Python."""
    graph = Graph()
    value = graph.placeholder("x")
    value = value if before is None else graph.call_function(before, (value,))
    sent = graph.call_function(op, (value, *args, mesh.group_name(mesh.owned[0])))
    graph.output((graph.call_function(c10d.wait_tensor.default, (sent,)),))
    return RankProgram(GraphModule({}, graph), mesh.owned[0], ProcessRuntime(mesh).native_meeting())


def meeting(_: Path) -> list[Any]:
    """What collectives in shared memory give, and those of the process group."""
    mesh = world_mesh(timeout=20)
    rank, runtime, found = mesh.owned[0], ProcessRuntime(mesh), []
    for op, *args in IN_MEMORY:
        if op is c10d.all_to_all_single.default:  # of 24 rows; the ranks give each other 8
            args = [[8, 16], [8, 16]] if rank else [[16, 8], [16, 8]]
        for dtype in (*DTYPES, torch.float64):
            if dtype is torch.int64 and "avg" in args:
                continue
            for shape in ((24, 100), (24, 0), (24, 3, 1)):
                x = torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(rank)).to(dtype)
                x = x.transpose(-1, -2).contiguous().transpose(-1, -2)  # not contiguous
                one = program(mesh, op, *args)
                (mine,) = runtime.run([partial(one, x.clone())])[0]
                gloo = "sum" if "avg" in args else None
                theirs = op(
                    x.clone().contiguous(), *([gloo, *args[1:]] if gloo else args), mesh.group_name(rank)
                )
                found.append((mine, c10d.wait_tensor(theirs) / (2 if gloo else 1)))
    return found


def leaving(_: Path) -> list[str]:
    """A rank fails, ranks disagree, one is late: each is an error on both."""
    mesh = world_mesh(timeout=20)
    rank, runtime = mesh.owned[0], ProcessRuntime(mesh)

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")

    def outcome(one: RankProgram, x: torch.Tensor) -> str:
        try:
            return str(runtime.run([lambda: one(x)])[0][0].tolist())
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    usual = program(mesh, c10d.all_reduce.default, "sum")
    failing = program(mesh, c10d.all_reduce.default, "sum", before=fail)
    said = []
    for one, x in ((failing if rank else usual, torch.ones(2)), (usual, torch.ones(2 + rank))):
        said += [outcome(one, x), outcome(usual, torch.ones(2))]
    mesh = mesh_from(None, 20.0, dist.new_group(timeout=timedelta(seconds=3)))
    runtime = ProcessRuntime(mesh)

    def doze(x: torch.Tensor) -> torch.Tensor:
        time.sleep(5.0 * rank)
        return x

    late = program(mesh, c10d.all_reduce.default, "sum", before=doze)
    return [*said, outcome(late, torch.ones(2)), outcome(late, torch.ones(2))]


def refused(_: Path) -> None:
    """What owners of several ranks cannot do."""
    mesh = mesh_from(2, 60.0, dist.group.WORLD)
    runtime = Runtime(mesh, 60.0)

    def call(rank: int) -> Callable[[], torch.Tensor]:
        sizes = [1] * 4
        name = mesh.group_name(rank)
        return lambda: torch.ops._c10d_functional.all_to_all_single(torch.zeros(4), sizes, sizes, name)

    with pytest.raises(tpfx.TpfxError, match="start one process for each rank"):
        runtime.run([call(rank) for rank in mesh.owned])
    runtime.close()


def comparing_amid_a_trace(_: Path) -> None:
    """AOTAutograd traces while plans are compared, and torch runs kernels with Python's lock held."""
    mesh = world_mesh(timeout=20)
    with enable_python_dispatcher():
        for step in range(300):
            require_same(mesh, "the steps", [str(step).encode()])


def reached_later(_: Path) -> list[int]:
    """Weights that the first call does not reach, and the second does: laid out anew amid a trace."""
    plain = TwoTowers()
    model, ids, image = (
        tpfx.compile(copy.deepcopy(plain)),
        torch.arange(12).view(2, 6),
        torch.ones(2, 3, 8, 8),
    )
    for given in ((ids,), (ids, image), (ids,)):
        loss, expected = (each(*given).square().sum() for each in (model, plain))
        loss.backward(), expected.backward()
        torch.testing.assert_close(loss, expected)
    weights = zip(model.parameters(), plain.parameters(), strict=True)
    for weight, other in weights:
        torch.testing.assert_close(weight.grad.full(), other.grad)
    return tpfx.report(model).bytes_per_device


def other_inputs(_: Path) -> None:
    """Raises CollectiveError in both processes."""
    model = tpfx.compile(tiny("gpt2", num_hidden_layers=1))
    given = inputs(model)
    with torch.no_grad():
        model(**given)
        given["input_ids"][0, 0] += dist.get_rank()
        model(**given)


def random_numbers(_: Path) -> list[Any]:
    """In a checkpoint while training, and in a branch."""
    nets = (("checkpointed", True), ("branch", False))
    return [steps(tpfx.compile(Drawing(name)), 3, train) for name, train in nets]


def recorded(_: Path) -> tuple[list[int], list[list[str]], Any]:
    """A generation whose steps are recorded, and replayed, by both: how often, and their collectives."""
    made: list[Tapes] = []

    def recorder_for(mesh: Mesh) -> Tapes:
        made.append(Tapes(mesh, several=True))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "recorder_for", recorder_for)
        model = tiny("llama", num_hidden_layers=1)
        plain = copy.deepcopy(model)
        split = tpfx.compile(model, mode="reduce-overhead", device_compiler="eager")
        static: Any = {"max_new_tokens": 5, "min_new_tokens": 5, "cache_implementation": "static"}
        for beams in (1, 2):
            found = split.generate(**inputs(plain), **static, num_beams=beams)
            torch.testing.assert_close(found, plain.generate(**inputs(plain), **static, num_beams=beams))
    everywhere = all_have_recorded(dist.group.WORLD, True)
    assert everywhere and not all_have_recorded(dist.group.WORLD, dist.get_rank() == 0)
    return [tape.replays for tape in made[0].made], [tape.collectives for tape in made[0].made], found


@torch.library.custom_op("two_ranks::slow_on_the_first", mutates_args=())
def slow_on_the_first(x: torch.Tensor) -> torch.Tensor:
    """Takes longer on rank 0."""
    time.sleep(0.0 if dist.get_rank() else 0.5)
    return x.clone()


slow_on_the_first.register_fake(torch.empty_like)


def profiled(_: Path) -> dict[str, Any]:
    """Two calls of a model that one rank is slow in."""
    tpfx.register_rule(torch.ops.two_ranks.slow_on_the_first, "... d -> ... d")

    class Slow(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(torch.ops.two_ranks.slow_on_the_first(self.up(x)))

    model, x = tpfx.compile(Slow()), torch.ones(2, 64)
    with torch.no_grad():
        model(x)
        with tpfx.profile(model) as profile:
            model(x)
            model(x)
    return profile.to_dict()


CHECKS = (
    same_program,
    saved,
    device_meshes,
    collectives,
    refused,
    comparing_amid_a_trace,
    reached_later,
    random_numbers,
    recorded,
    meeting,
    leaving,
    profiled,
)


def main() -> None:
    torch.set_num_threads(1)
    shared_memory.ROOM = 1 << 10  # bytes: most collectives go in several parts
    folder = Path(sys.argv[1])
    for check in CHECKS:
        try:
            found = {"found": check(folder)}
        except Exception:
            found = {"problem": traceback.format_exc()}
        torch.save(found, folder / f"{check.__name__}.{dist.get_rank()}")
    other_inputs(folder)


if __name__ == "__main__":
    main()
