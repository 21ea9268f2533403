"""What the doctor says of this machine, and of machines on which something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tpfx
from tpfx.cli import checks, main
from tpfx.errors import CollectiveTimeout
from tpfx.native.build import NoExecutor

Doctor = Callable[..., tuple[int, str]]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Doctor:
    """Calls it: the status, and what it says."""
    monkeypatch.setenv("TPFX_CACHE_DIR", str(tmp_path))

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["tpfx", "doctor", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().out

    return call


def test_of_this_machine(doctor: Doctor, tmp_path: Path) -> None:
    status, out = doctor()
    assert status == 0 and out.endswith("\nno problem is known\n")
    assert f"  tpfx           {tpfx.__version__}\n" in out and f"{torch.__version__} (tried: " in out
    assert "all-reduce     of " in out and " GB/s after " in out and ", measured" in out
    assert "executor       not built yet" in out and "plans              0 0 B" in out
    assert list(tmp_path.iterdir()) == []


def fails(*_: Any) -> Any:
    raise NoExecutor("ImportError: undefined symbol")


MACHINES: dict[str, tuple[dict[str, Any], dict[str, str], str, str, bool]] = {
    "torch": (
        {"is_tried": lambda _: False},
        {},
        "has not been tried",
        "pip install 'torch>=2.11,<2.15'",
        False,
    ),
    "transformers": (
        {"installed": lambda _: "4.40.0"},
        {},
        "transformers 4.40.0 is older",
        "pip install 'tpfx[transformers]'",
        False,
    ),
    "dynamo": ({}, {"TORCHDYNAMO_DISABLE": "1"}, "every model runs whole", "unset TORCHDYNAMO_DISABLE", True),
    "variable": ({}, {"TPFX_CAHCE": "0"}, "TPFX_CAHCE is set", "it reads TPFX_PROGRESS", False),
    "CPU build": (
        {"CHECKS": (checks._cuda,), "shutil": SimpleNamespace(which=str)},  # so nvidia-smi is there
        {},
        "there is a GPU, but torch",
        "for CUDA",
        False,
    ),
    "no compiler": ({"compiler": lambda: None}, {}, "there is no C++ compiler", "install g++", False),
    "executor": (
        {"executor_file": lambda: Path(__file__), "load": fails},
        {},
        "the executor cannot be loaded: ImportError: undefined symbol",
        "tpfx cache --clear has it built anew",
        True,
    ),
    "cache": (
        {},
        {"TPFX_CACHE_DIR": f"{__file__}/tpfx"},
        f"nothing can be kept in {__file__}/tpfx",
        "another folder by TPFX_CACHE_DIR",
        False,
    ),
    "room": ({"ROOM": 1 << 80}, {}, "are free in", "make room there", False),
}


@pytest.mark.parametrize("name", MACHINES)
def test_what_goes_wrong_is_said_with_what_helps(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    changes, variables, text, remedy, breaks = MACHINES[name]
    if name == "CPU build" and torch.backends.cuda.is_built():
        pytest.skip("this torch is one for CUDA")
    for key, value in changes.items():
        monkeypatch.setattr(checks, key, value)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    status, out = doctor("--no-links")
    (line,) = [line for line in out.splitlines() if line.startswith(("problem: ", "broken: "))]
    assert text in line and remedy in line.partition("; ")[2]
    assert status == breaks == line.startswith("broken: ")
    assert out.endswith(f"1 problem, {int(breaks)} of them broken\n")


def test_devices_that_cannot_talk_to_each_other(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(_: Any) -> Any:
        raise CollectiveTimeout("rank 1 never came")

    monkeypatch.setitem(sys.modules["tpfx.cli.doctor"].__dict__, "measure", measure)
    status, out = doctor()
    assert status == 1 and "cannot talk to each other: rank 1 never came" in out
