"""The library tensor_parallel, in an environment of its own: `Peer(…)` starts it and asks it for seconds.

It needs an old transformers, so it lives in a virtual environment that `environment` makes, and runs this
file as a program: one JSON object on a line in (a phase, say), one out (its seconds).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
REQUIREMENTS = (
    "torch==2.13.0",
    "tensor_parallel==2.0.0",
    "transformers==4.35.2",
    "numpy<2",
    "setuptools<81",
)


def environment(folder: Path = ROOT / ".peer-venv") -> Path:
    """The Python of the peer's virtual environment, made when it is not there yet."""
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    if ready.exists():
        return python
    base = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    if base is None:
        raise FileNotFoundError("tensor_parallel needs Python 3.11; install it, or pass --no-peer")
    print(f"Installing tensor_parallel into {folder}; the first time takes some minutes.", file=sys.stderr)
    subprocess.run([base, "-m", "venv", folder], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, REQUIREMENTS[0]], check=True)  # alone, so that a build for the CPU is kept
    subprocess.run([*pip, *REQUIREMENTS], check=True)
    ready.touch()
    return python


class Peer:
    """A process that has a model split by tensor_parallel over `devices` CPU devices, one thread each."""

    def __init__(self, devices: int, shape: dict[str, Any], batch: int, length: int) -> None:
        command = [str(environment()), "-W", "ignore", "-m", "benchmarks.peer"]
        self._process = subprocess.Popen(
            command, cwd=ROOT.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._ask({"devices": devices, "batch": batch, "length": length, "shape": shape})

    def measure(self, phase: str) -> float:
        """Seconds of one measurement."""
        return float(self._ask({"phase": phase})["seconds"])

    def held(self) -> list[int]:
        """Bytes on each device while it trains."""
        return [int(size) for size in self._ask({"held": True})["held"]]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print too
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"tensor_parallel's process ended ({self._process.wait()}) at {question}")


def _serve() -> None:
    import tensor_parallel  # type: ignore[import-not-found]  # of the other environment
    import torch

    from .models import build, config, prompt
    from .phases import PHASES, bytes_held

    given = json.loads(sys.stdin.readline())
    torch.set_num_threads(1)
    model = build(config(**given["shape"]))
    model = tensor_parallel.tensor_parallel(model, ["cpu"] * given["devices"])
    ids = prompt(given["length"], given["batch"])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "held" in question:
            print(json.dumps({"held": bytes_held(model)}), flush=True)
        else:
            print(json.dumps({"seconds": PHASES[question["phase"]](model, ids)}), flush=True)


if __name__ == "__main__":
    _serve()
