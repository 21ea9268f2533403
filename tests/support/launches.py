"""Fixtures: processes that are launched once, and whose results several tests look at."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests.support.processes import finish, start


@dataclass(frozen=True)
class Launched:
    """Processes that have ended.

    Attributes:
        folder: where their results are, `<check>.<rank>`.
        ended: the exit code of each, and what it wrote to stderr.
    """

    folder: Path
    ended: list[tuple[int, str]]

    def results(self, check: str) -> list[Any]:
        """What each process found; the test fails with the error of one that failed."""
        found = []
        for rank, (_, errors) in enumerate(self.ended):
            path = self.folder / f"{check}.{rank}"
            assert path.exists(), errors
            one = torch.load(path, weights_only=False)
            assert "problem" not in one, f"rank {rank}: {one['problem']}"
            found.append(one["found"])
        return found


def _once(factory: pytest.TempPathFactory, name: str, launch: Callable[[Path], Launched]) -> Launched:
    """The launch of a session, which the workers of pytest-xdist share."""
    base = factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base
    folder = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not (folder / "launched").exists():
            folder.mkdir()
            torch.save(launch(folder), folder / "launched")
        found: Launched = torch.load(folder / "launched", weights_only=False)
    return found


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """The checks of `tests.support.two_ranks`."""

    def launch(folder: Path) -> Launched:
        return Launched(folder, finish(start(2, "-m", "tests.support.two_ranks", str(folder))))

    return _once(tmp_path_factory, "two_processes", launch)


GENERATING = """
import os, sys, time, torch, torch.distributed.checkpoint as dcp, tpfx
from tests.support.models import tiny, inputs
model = tiny("llama", num_hidden_layers=1)
with torch.no_grad():
    for weight in model.parameters():
        weight.zero_()
model = tpfx.compile(model, timeout=20)
state = model.state_dict()
dcp.load(state, checkpoint_id=sys.argv[1])
rank = os.environ["RANK"]
torch.save({"found": tpfx.full_state_dict(model)}, sys.argv[2] + "/loaded." + rank)
ids = inputs(model)["input_ids"]
model.generate(ids, max_new_tokens=4, min_new_tokens=4)
print("ready", flush=True)
for step in range(1000):
    if step == 3 and sys.argv[3] == "stops" and rank == "1":
        time.sleep(600)
    model.generate(ids, max_new_tokens=64, min_new_tokens=64)
"""


def generating(how: str, two: Launched, folder: Path) -> Launched:
    """Three processes load what two saved, and generate; then that of rank 1 "is killed" or "stops"."""
    running = start(3, "-c", GENERATING, str(two.folder / "checkpoint"), str(folder), how)
    try:
        for process in running:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(3.0)  # beyond the calls whose inputs are compared, which would be the first to notice
        if how == "is killed":
            running[1].send_signal(signal.SIGKILL)
        zero, two_ = finish([running[0], running[2]], 200.0)
    finally:
        one = finish_now(running)
    return Launched(folder, [zero, one, two_])


def finish_now(running: list[Any]) -> tuple[int, str]:
    """Kill what still runs; the end of the process of rank 1."""
    for process in running:
        process.kill()
    errors = running[1].communicate()[1]
    return running[1].returncode, errors


@pytest.fixture(scope="session")
def three_processes(tmp_path_factory: pytest.TempPathFactory, two_processes: Launched) -> Launched:
    """One of which was killed while they generated."""
    return _once(
        tmp_path_factory, "three_processes", lambda folder: generating("is killed", two_processes, folder)
    )
