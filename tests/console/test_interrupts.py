"""Ctrl-C ends the command line quietly, also while torch is imported."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tpfx.console.interrupts import is_command

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", [["-m", "tpfx", "plan"], ["bin/tpfx", "plan"]])
def test_while_torch_is_imported(tmp_path: Path, command: list[str]) -> None:
    """A torch that says that it is imported, and takes its time."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tpfx").write_text("from tpfx.cli import main\nmain()\n")
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
    assert process.returncode == 130


def test_what_imports_tpfx_keeps_its_own_way() -> None:
    assert is_command(["/usr/bin/tpfx"], ["python", "/usr/bin/tpfx"])
    assert is_command(["-m"], ["python", "-X", "utf8", "-m", "tpfx"])
    assert not is_command(["train.py"], ["python", "train.py"])
    assert not is_command(["-m", "tpfx"], ["python", "-m", "pytest", "tpfx"])
    assert not is_command([], ["python"])
