"""Processes as torchrun starts them, one for each rank.

launch(2, "-m", "tests.support.spmd", out, "gpt2")
for code, errors in finish(start(2, "-c", PROGRAM)):
    assert code == 1 and "CollectiveError" in errors
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start(count: int, *command: str) -> list[subprocess.Popen[str]]:
    """Processes as torchrun starts them, without torchrun, which would end the others where one ends."""
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(count)}
    common |= {"TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def finish(running: Sequence[subprocess.Popen[str]], seconds: float = 1200.0) -> list[tuple[int, str]]:
    """Exit codes and what was written to stderr; nothing is left running."""
    end, done = time.monotonic() + seconds, []
    try:
        for process in running:
            errors = process.communicate(timeout=max(1.0, end - time.monotonic()))[1]
            done.append((process.returncode, errors))
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.communicate()
    return done


def launch(count: int, *command: str) -> None:
    for code, errors in finish(start(count, *command)):
        assert code == 0, errors
