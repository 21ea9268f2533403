"""The library tensor_parallel, in an environment of its own: `Peer(…)` starts it and asks it for seconds.

It needs an old transformers, so it lives in a virtual environment that `environment` makes, and runs this
file as a program.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from .remote import Remote, given, serve

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


class Peer(Remote):
    """A process that has a model split by tensor_parallel over `devices` CPU devices, one thread each."""

    def __init__(self, devices: int, shape: dict[str, Any], batch: int, length: int) -> None:
        command = [str(environment()), "-W", "ignore", "-m", "benchmarks.peer"]
        super().__init__(command, {"devices": devices, "batch": batch, "length": length, "shape": shape})


def main() -> None:
    """Split the model that the first line tells of, and answer questions about it."""
    import tensor_parallel  # type: ignore[import-not-found]  # of the other environment
    import torch

    from .models import build, config, prompt

    told = given()
    torch.set_num_threads(1)
    model = build(config(**told["shape"]))
    model = tensor_parallel.tensor_parallel(model, ["cpu"] * told["devices"])
    serve(model, prompt(told["length"], told["batch"]))


if __name__ == "__main__":
    main()
