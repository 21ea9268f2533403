"""Split tensors in what is not tpfx's: functions that others compile, collectives, plain tensors' data."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

import tpfx
from tests.support.nets import Net
from tests.support.processes import launch
from tests.support.sharded import CPUS, whole

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))

# Two processes, each with a model of two devices of its own: what they say to each other of its weights.
PROGRAM = """
import torch, tpfx, torch.distributed as dist
from tests.support.nets import Net
from tests.support.sharded import CPUS, whole

dist.init_process_group("gloo")
rank, x = dist.get_rank(), torch.ones(2, 8)
model = tpfx.compile(Net(), CPUS)
model(x)
start = Net().up.weight.detach()

def fresh():
    return model.up.weight.detach() * 1

def empty():
    return torch.zeros(24, 8)

def check(name, got, want):
    assert torch.allclose(whole(got), want, atol=1e-6), name

for name, run, want in (
    ("all_reduce", lambda w: dist.all_reduce(w), 2 * start),
    ("asynchronous", lambda w: dist.all_reduce(w, async_op=True).wait(), 2 * start),
    ("broadcast", lambda w: dist.broadcast(w.mul_(rank + 1), 1), 2 * start),
    ("reduce", lambda w: dist.reduce(w, 0), 2 * start if rank == 0 else None),
    ("scatter into", lambda w: dist.scatter(w, [empty(), start] if rank == 0 else None), start * rank),
    ("all_gather into", lambda w: dist.all_gather([w, empty()], empty() + 3), empty() + 3),
    ("receive into", lambda w: dist.recv(w, 0) if rank else dist.send(start * 2, 1), start * (1 + rank)),
):
    weight = fresh()
    run(weight)
    if want is not None:
        check(name, weight, want)

for name, run in (
    ("scatter", lambda out, w: dist.scatter(out, [w, w] if rank == 0 else None)),
    ("reduce_scatter", lambda out, w: dist.reduce_scatter(out, [w / 2, w / 2])),
    ("all_gather", lambda out, w: dist.all_gather([out, empty()], w)),
    ("all_to_all", lambda out, w: dist.all_to_all([out, empty()], [w, w])),
    ("receive", lambda out, w: dist.recv(out, 0) if rank else dist.send(w, 1) or out.copy_(w)),
):
    out = empty()
    run(out, fresh())
    check(name, out, start)

model(x * (rank + 1)).square().mean().backward()
for weight in model.parameters():
    dist.all_reduce(weight.grad)
plain = Net()
for each in (1, 2):
    plain(x * each).square().mean().backward()
for one, other in zip(model.parameters(), plain.parameters(), strict=True):
    check("gradients", one.grad, other.grad)
dist.barrier()
"""


@pytest.mark.slow
def test_collectives_of_the_models_weights_and_gradients() -> None:
    launch(2, "-c", PROGRAM)


def test_a_collective_writes_into_a_split_weight() -> None:
    """Of torch's ops it is one that does not say so: the weight stayed as it was, without an error."""
    model = tpfx.compile(Net(), CPUS)
    model(X)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with torch.no_grad():
            dist.scatter(model.up.weight, [torch.full((24, 8), 2.0)])
            dist.all_gather([model.down.weight], torch.full((8, 24), 3.0))
        other = torch.zeros(24, 8)
        dist.scatter(other, [model.up.weight.detach()])
    finally:
        dist.destroy_process_group()
    assert model.up.weight.full().unique() == 2 and model.down.weight.full().unique() == 3  # type: ignore[operator]
    assert other.unique() == 2


def steps(model: Any) -> list[torch.Tensor]:
    """A loss, an optimizer's step, a layer and an average that torch compiles for another backend."""
    compiled = torch.compile(lambda w: (w * w).sum() + w.abs().max(), backend="aot_eager")
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    step = torch.compile(optimizer.step, backend="aot_eager")
    for _ in range(2):
        (model(X).square().mean() + compiled(model.up.weight)).backward()
        step()
        optimizer.zero_grad()
    layer = torch.compile(lambda x: torch.tanh(model.up(x)), backend="aot_eager")
    return [compiled(model.up.weight), layer(X), *model.parameters()]


@pytest.mark.filterwarnings("ignore:.*record_function:UserWarning")
def test_what_other_backends_compile_is_right_for_split_tensors() -> None:
    """They computed with memory that no one had written to."""
    results = [[whole(one).detach() for one in steps(one)] for one in (Net(), tpfx.compile(Net(), CPUS))]
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_a_graph_that_aotautograd_traces_by_itself_refuses_them() -> None:
    from functorch.compile import aot_function, nop

    model = tpfx.compile(Net(), CPUS)
    model(X)
    with pytest.raises(tpfx.ShardingError, match=r"cannot go into a graph .* pass tensor\.full\(\)"):
        aot_function(lambda w: w * 2, nop)(model.up.weight.detach())


def test_data_of_a_plain_weight() -> None:
    """What was computed is assigned whole; what has memory of its own would be shared, and is refused."""
    model, plain = tpfx.compile(Net(), CPUS), nn.Linear(8, 24)
    model(X)
    with torch.no_grad():
        plain.weight.data = model.up.weight * 2
        other = copy.deepcopy(plain)
        other.weight.add_(1)
    assert torch.equal(other.weight, model.up.weight.full() * 2 + 1)  # type: ignore[operator]
    with pytest.raises(tpfx.ShardingError, match=r"plain\.data = tensor\.full\(\)"):
        plain.weight.data = model.up.weight.data
    assert torch.equal(plain.weight, model.up.weight.full() * 2)  # type: ignore[operator]


def test_tensors_that_lie_on_a_mesh_of_their_own_are_refused_with_a_remedy() -> None:
    model = tpfx.compile(Net(), CPUS)
    expected = model(X)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        with pytest.raises(tpfx.InputError, match=r"x is a DTensor.*pass x\.full_tensor\(\)"):
            model(distribute_tensor(X, mesh))
        with pytest.raises(tpfx.ShardingError, match=r"a DTensor, which lies on a mesh.*full_tensor\(\)"):
            model.up.weight.detach() + distribute_tensor(torch.ones(24, 8), mesh)  # type: ignore[operator]
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(model(X), expected)
