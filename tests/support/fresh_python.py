"""A Python of its own for what a test says of a whole process.

assert run("import tpfx, threading; print(threading.active_count())").strip() == "1"
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(code: str, timeout: float = 240.0) -> str:
    """What a program prints; it fails as the program does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
