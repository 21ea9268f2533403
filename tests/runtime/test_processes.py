"""One process per rank: the same program under torchrun as in one process, and ranks that fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import tpfx
from tests.support import spmd
from tests.support.launches import Launched, generating
from tests.support.processes import ROOT, launch
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


LARGE = [pytest.mark.slow, pytest.mark.timeout(1800), needs_smollm2]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(pytest.param(*one, marks=pytest.mark.slow) for one in product(("gpt2", "t5", "mixtral"), (2, 3))),
        *(pytest.param("smollm2", count, marks=LARGE) for count in (2, 3)),
    ],
)
def test_the_same_program_computes_the_same(name: str, count: int, tmp_path: Path) -> None:
    launch(count, "-m", "tests.support.spmd", str(tmp_path / "many"), name)
    compare([torch.load(tmp_path / f"many.{rank}") for rank in range(count)], name)


def test_one_layer_computes_the_same(two_processes: Launched) -> None:
    compare(two_processes.results("same_program"), "gpt2", layers=1)


def compare(many: list[dict[str, Any]], name: str, layers: int = 2) -> None:
    """Logits, greedy, beam and sampled tokens, ten steps of training with clipping, and the weights after."""
    model, given = spmd.build(name, layers)
    model = tpfx.compile(model, ["cpu"] * len(many))
    expected = spmd.results(model, given)
    for found in many:
        held = found.pop("held")
        same(expected, found)
        assert_held(model, held)
    torch._dynamo.reset()
    plain, given = spmd.build(name, layers)
    assert found["losses"] == pytest.approx(spmd.results(plain, given)["losses"], rel=1e-5, abs=1e-4)


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
    options = ("--replicas", "2", "--layers", "1")
    launch(4, "-m", "tests.support.spmd", str(tmp_path / "grid"), "llama", *options)
    model, given = spmd.build("llama", layers=1)
    expected = spmd.losses(model, given)
    for rank in range(4):
        found = torch.load(tmp_path / f"grid.{rank}")
        assert found["losses"] == pytest.approx(expected, abs=1e-4)
        torch.testing.assert_close(found["weights"], dict(model.state_dict()), atol=1e-4, rtol=1e-3)
        assert len(found["held"]) == 2


def assert_ended(launched: Launched) -> None:
    """The others exit with an error that names the node."""
    for rank in (0, 2):
        code, errors = launched.ended[rank]
        assert code != 0
        assert f"on rank {rank} (cpu), in node " in errors, errors


def test_the_others_end_when_a_rank_is_killed(three_processes: Launched) -> None:
    assert_ended(three_processes)


@pytest.mark.slow
def test_the_others_end_when_a_rank_stops(two_processes: Launched, tmp_path: Path) -> None:
    assert_ended(generating("stops", two_processes, tmp_path))


def test_other_inputs_on_one_process_are_an_error_on_all(two_processes: Launched) -> None:
    for code, errors in two_processes.ended:
        assert code == 1 and "CollectiveError: the inputs of rank(s) 1 differ from those of rank 0" in errors


def test_comparing_amid_a_trace_does_not_lock_up(two_processes: Launched) -> None:
    two_processes.results("comparing_amid_a_trace")


def test_weights_that_a_later_call_reaches(two_processes: Launched) -> None:
    for held in two_processes.results("reached_later"):
        assert max(held) < 1.1 * sum(held) / 2


def test_device_meshes(two_processes: Launched) -> None:
    two_processes.results("device_meshes")
