"""Times the first five commands of somebody who has never used tpfx and has Python, git and make.

    make newcomer

They clone the repository, run the demo, install the package elsewhere, split a model of their own, and plan
it for cards that they do not have. Each command has to show something. The wheel that is built here stands
for the one on PyPI; what pip has in its own cache is not fetched again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

MINE = """
import torch
from torch import nn
import tpfx


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)), (torch.randn(8, 256),)


if __name__ == "__main__":
    model, inputs = build()
    expected = model(*inputs)
    model = tpfx.compile(model, ["cpu", "cpu"])
    print("the same as before:", torch.allclose(model(*inputs), expected, atol=1e-5))
    print(tpfx.report(model))
"""


def main() -> None:
    """Run the commands in order, and print the seconds of each."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        venv.create(folder / "env", with_pip=True)
        python = folder / "env/bin/python"
        prepare = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT]
        subprocess.run(prepare, check=True)
        (wheel,) = folder.glob("*.whl")
        (folder / "mine.py").write_text(MINE)
        steps = [
            (f"git clone {ROOT} tpfx", "ls tpfx", "README.md"),
            ("make -C tpfx demo", "", "generated the same tokens as the unsharded one"),
            (
                f"env/bin/pip install --constraint {ROOT}/constraints.txt {wheel.name}",
                "",
                "Successfully installed",
            ),
            ("env/bin/python mine.py", "", "the same as before: True"),
            ("env/bin/tpfx plan mine:build -n 2 --topology rtx-4090", "", "fits: 2 × RTX 4090"),
        ]
        seconds = [step(folder, *words) for words in steps]
    print(f"{len(steps)} commands, {sum(seconds):.0f} s")


def step(folder: Path, command: str, look: str, shows: str) -> float:
    """Run a command, and what looks at what it did; it has to show something."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    environment |= {"TPFX_CACHE_DIR": str(folder / "cache"), "PYTHONIOENCODING": "utf-8"}
    start = time.perf_counter()
    said = ""
    for one in filter(None, (command, look)):
        done = subprocess.run(one, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        said += done.stdout
        if done.returncode:
            raise SystemExit(f"$ {one}\n{done.stdout}{done.stderr}\nfailed with status {done.returncode}")
    took = time.perf_counter() - start
    if shows not in re.sub(r"\s+", " ", said):
        raise SystemExit(f"$ {command}\n{said}\ndoes not show {shows!r}")
    lines = [line.strip() for line in said.splitlines()]
    shown = next(line for part in (shows, shows[:12]) for line in lines if part in line)
    print(f"{took:7.1f} s  $ {command}\n           {shown[:100]}", flush=True)
    return took


if __name__ == "__main__":
    sys.exit(main())
