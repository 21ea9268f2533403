"""One process per rank: the same program under torchrun as in one process, and ranks that fail."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tpfx
from tests.support import spmd
from tests.support.processes import ROOT, finish, launch, start
from tests.support.smollm2 import needs_smollm2


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the programs that are compared with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same(expected: dict[str, Any], found: dict[str, Any]) -> None:
    assert set(expected) == set(found)
    for key in ("greedy", "beams", "sampled"):
        assert torch.equal(expected[key], found[key]), key
    scale = float(expected["logits"].abs().max())
    torch.testing.assert_close(found["logits"], expected["logits"], atol=1e-5 * max(1.0, scale), rtol=1e-4)
    torch.testing.assert_close(found["weights"], expected["weights"], atol=1e-5, rtol=1e-4)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5, abs=1e-5)


def assert_held(model: Any, held: list[int]) -> None:
    """Bytes as those of a model in one process, save that tables no graph divides lie in each process."""
    tables = sum(buffer.nbytes for buffer in model.buffers())
    assert held == pytest.approx(tpfx.report(model).bytes_per_device, abs=tables)


SLOW = [
    (name, count) for name in ("gpt2", "t5", "mixtral") for count in (2, 3) if (name, count) != ("gpt2", 2)
]
LARGE = [pytest.mark.slow, pytest.mark.timeout(1800), needs_smollm2]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2", 2),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW),
        *(pytest.param("smollm2", count, marks=LARGE) for count in (2, 3)),
    ],
)
def test_the_same_program_computes_the_same(name: str, count: int, tmp_path: Path) -> None:
    """Logits, greedy, beam and sampled tokens, ten steps of training with clipping, and the weights after."""
    launch(count, "-m", "tests.support.spmd", str(tmp_path / "many"), name)
    model, given = spmd.build(name)
    model = tpfx.compile(model, ["cpu"] * count)
    expected = spmd.results(model, given)
    for rank in range(count):
        found = torch.load(tmp_path / f"many.{rank}")
        held = found.pop("held")
        same(expected, found)
        assert_held(model, held)
    torch._dynamo.reset()
    plain, given = spmd.build(name)
    expected = spmd.results(plain, given)["losses"]
    assert found["losses"] == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shares"), [("gpt2", (2, 1)), ("t5", (2, 2)), ("mixtral", (1, 2))])
def test_processes_that_own_several_ranks(name: str, shares: tuple[int, ...], tmp_path: Path) -> None:
    launch(
        len(shares), "-m", "tests.support.spmd", str(tmp_path / "many"), name, "--shares", *map(str, shares)
    )
    model, given = spmd.build(name)
    model = tpfx.compile(model, ["cpu"] * sum(shares))
    expected = spmd.results(model, given)
    for process in range(len(shares)):
        found = torch.load(tmp_path / f"many.{process}")
        held = found.pop("held")
        same(expected, found)
        assert_held(model, held)


@pytest.mark.slow
def test_torchrun_itself(tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("torchrun")),
        "--nproc-per-node=2",
        "-m",
        "tests.support.spmd",
    ]
    subprocess.run([*command, str(tmp_path / "out"), "gpt2"], check=True, cwd=ROOT, capture_output=True)
    one, two = (torch.load(tmp_path / f"out.{rank}") for rank in (0, 1))
    same(
        {key: value for key, value in one.items() if key != "held"},
        {k: v for k, v in two.items() if k != "held"},
    )


def test_data_parallel_times_tensor_parallel(tmp_path: Path) -> None:
    """Losses and weights are those of the unsharded model on the whole batch."""
    launch(4, "-m", "tests.support.spmd", str(tmp_path / "grid"), "llama", "--replicas", "2")
    model, given = spmd.build("llama")
    expected = spmd.losses(model, given)
    for rank in range(4):
        found = torch.load(tmp_path / f"grid.{rank}")
        assert found["losses"] == pytest.approx(expected, abs=1e-4)
        torch.testing.assert_close(found["weights"], dict(model.state_dict()), atol=1e-4, rtol=1e-3)
        assert len(found["held"]) == 2


KILLED = """
import os, signal, sys, time, torch, tpfx
from tests.support.models import tiny, inputs
model = tpfx.compile(tiny("llama"), timeout=20)
ids = inputs(model)["input_ids"]
model.generate(ids, max_new_tokens=4, min_new_tokens=4)
print("ready", flush=True)
for step in range(1000):
    if step == 3 and "{how}" == "stops" and os.environ["RANK"] == "1":
        time.sleep(600)
    model.generate(ids, max_new_tokens=64, min_new_tokens=64)
"""


@pytest.mark.parametrize("how", ["is killed", pytest.param("stops", marks=pytest.mark.slow)])
def test_the_others_end_when_a_rank(how: str) -> None:
    """They exit with an error that names the node, and nothing is left running."""
    running = start(3, "-c", KILLED.replace("{how}", how))
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(3.0)  # beyond the calls whose inputs are compared, which would be the first to notice
    start_of_wait = time.monotonic()
    if how == "is killed":
        running[1].send_signal(signal.SIGKILL)
    done = finish([running[0], running[2]], 60.0)
    assert time.monotonic() - start_of_wait < (30 if how == "is killed" else 50)
    running[1].kill()
    running[1].communicate()
    for rank, (code, errors) in zip((0, 2), done, strict=True):
        assert code != 0
        assert f"on rank {rank} (cpu), in node " in errors, errors


DIFFERENT = """
import os, torch, tpfx
from tests.support.models import tiny, inputs
model = tpfx.compile(tiny("gpt2"))
given = inputs(model)
with torch.no_grad():
    model(**given)
    given["input_ids"][0, 0] += int(os.environ["RANK"])
    model(**given)
"""


def test_other_inputs_on_one_process_are_an_error_on_all() -> None:
    for code, errors in finish(start(2, "-c", DIFFERENT)):
        assert code == 1 and "CollectiveError: the inputs of rank(s) 1 differ from those of rank 0" in errors


AMID_A_TRACE = """
import torch, tpfx
from torch._dispatch.python import enable_python_dispatcher
from tpfx.runtime.processes import require_same, world_mesh
mesh = world_mesh(timeout=20)
with enable_python_dispatcher():
    for step in range(300):
        require_same(mesh, "the steps", [str(step).encode()])
"""


def test_comparing_amid_a_trace_does_not_lock_up() -> None:
    """Plans are compared while AOTAutograd traces, when torch runs kernels with Python's lock held."""
    for code, errors in finish(start(2, "-c", AMID_A_TRACE), 120.0):
        assert code == 0, errors


MESHES = """
import pytest, torch, tpfx
from torch.distributed.device_mesh import init_device_mesh
from tests.support.models import inputs, tiny
torch.distributed.init_process_group("gloo")
with pytest.raises(tpfx.DeviceError, match="3 dimensions|one is called"):
    tpfx.compile(tiny("gpt2"), init_device_mesh("cpu", (1, 1, 2), mesh_dim_names=("a", "b", "tp")))
with pytest.raises(tpfx.DeviceError, match="one is called"):
    tpfx.compile(tiny("gpt2"), init_device_mesh("cpu", (1, 2), mesh_dim_names=("a", "b")))
model = tpfx.compile(tiny("gpt2"), init_device_mesh("cpu", (2,)))
assert len(tpfx.report(model).devices) == 2
assert len(model.lm_head.weight.shards) == 1
group = torch.distributed.group.WORLD
with pytest.raises(tpfx.DeviceError, match="leave group out"):
    tpfx.compile(tiny("gpt2"), init_device_mesh("cpu", (2,)), group=group)
owner = tpfx.compile(tiny("gpt2"), 2, group=group)
assert len(tpfx.report(owner).devices) == 4
plain, given = tiny("gpt2"), inputs(owner)
loss, expected = (m(**given, labels=given["input_ids"]).loss for m in (owner, plain))
loss.backward(), expected.backward()
torch.testing.assert_close(loss, expected)
torch.testing.assert_close(owner.lm_head.weight.grad.full(), plain.lm_head.weight.grad)
assert owner.lm_head.weight.mesh.owned == ((0, 1), (2, 3))[torch.distributed.get_rank()]
print(tpfx.report(model), repr(model.lm_head.weight))
"""


def test_device_meshes() -> None:
    launch(2, "-c", MESHES)
