"""Every example runs as a script, from anywhere, and its comparisons with the unsharded model come out."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples.notebooks import scripts
from tests.support.examples import require
from tests.support.fresh_python import ROOT
from tests.support.smollm2 import needs_smollm2

EXAMPLES = ROOT / "examples"

# What each says, at least, beside differences that have to be small. Those without a mark are cheap.
SAYS: dict[str, list[str]] = {
    "diffusion": ["two images of", "weights on 2 devices"],
    "finetune": ["9[0-9] of 100 right|100 of 100 right", "gives the same answers: True"],
    "generate": [f"{way}: the same tokens as whole: True" for way in ("greedy", "3 beams", "sampled")],
    "kaggle_t4": [
        r"fits T4, 14 GiB +│ +no │ +yes │",
        "largest difference of the logits",
        "loss 6.9. at first, 5",
    ],
    "load": ["are on: {'meta'}", "device 1 holds 6.0 MiB", "that was loaded whole: True"],
    "lora": ["trainable params", "the adapters take 5. KiB", "with these adapters says the same: True"],
    "own_module": ["GatedBlock|Sequential on 2 devices", "# inputs", "all_reduce"],
    "own_op": [
        "run whole: mine.scale.default",
        "is not true",
        "all right: [1-9]",
        "run whole: none",
    ],
    "plan_before_buying": [
        "fits: 2 × RTX 4090",
        "4 devices",
        "7.48 GiB of 14.96 GiB",
        "million tokens of dec",
    ],
    "train": ["100 examples", "of 14 steps, 3", "the loaded model writes the same: True"],
    "vision": ["vision transformer: .*\n(9.|100)% of 200", "conv net: .*\n(9.|100)% of 200"],
}
CHEAP = ("own_module", "own_op")


def said_by(folder: Path, *command: str) -> str:
    """What an example prints, started elsewhere."""
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    environment = {**os.environ, **settings}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def marked(name: str) -> object:
    return name if name in CHEAP else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [marked(name) for name in SAYS])
def test_an_example(name: str, tmp_path: Path) -> None:
    if name == "diffusion" and importlib.util.find_spec("diffusers") is None:
        pytest.skip("needs diffusers, of the extra tpfx[examples]")
    require(said_by(tmp_path, str(EXAMPLES / f"{name}.py")), SAYS[name])


def test_no_example_is_left_out() -> None:
    apart = {"demo", "notebooks", "torchrun"}
    assert {path.stem for path in scripts()} == set(SAYS)
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SAYS, *apart}


@pytest.mark.slow
@needs_smollm2
def test_the_demo(tmp_path: Path) -> None:
    said = said_by(tmp_path, str(EXAMPLES / "demo.py"), "--max-new-tokens", "4")
    assert "the same tokens as the unsharded one" in said and "weights on 2 devices" in said


@pytest.mark.slow
def test_torchrun_goes_on_from_what_was_saved_on_another_number_of_devices(tmp_path: Path) -> None:
    script = str(EXAMPLES / "torchrun.py")

    def launched(processes: int, steps: int) -> str:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        return said_by(tmp_path, *launch, script, "--steps", str(steps))

    def losses(said: str) -> dict[int, float]:
        return {int(step): float(loss) for step, loss in re.findall(r"step (\d+): loss (\S+)", said)}

    unsharded = losses(said_by(tmp_path, script, "--steps", "10", "--folder", "elsewhere"))
    first, second = launched(2, 5), launched(3, 10)
    assert "goes on after 5 steps" in second and "goes on" not in first
    found = {**losses(first), **losses(second)}
    assert list(found) == list(unsharded) == list(range(1, 11))
    assert list(found.values()) == pytest.approx(list(unsharded.values()), abs=1e-4)
