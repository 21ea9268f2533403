"""tpfx profile: a script runs as under Python, and its models' times come after what it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tpfx.cli import main

Run = Callable[..., tuple[Any, str, str]]

SCRIPT = """
import sys
import torch, tpfx
import beside

if __name__ == "__main__":
    net = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16))
    model = tpfx.compile(net, ["cpu", "cpu"])
    with torch.no_grad():
        for _ in range(2):
            model(torch.ones(2, 16))
    print("arguments", sys.argv[1:], beside.NAME)
    if "fail" in sys.argv:
        raise ValueError("as asked")
    if "leave" in sys.argv:
        sys.exit(7)
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call the command line in this process: `(status, output, errors)`."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("NAME = 'beside'\n")
    (tmp_path / "idle.py").write_text("print('idle')\n")
    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["tpfx", "profile", *args])
        monkeypatch.delitem(sys.modules, "beside", raising=False)
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


def test_a_script_has_its_arguments_and_its_table_comes_last(run: Run, tmp_path: Path) -> None:
    path = list(sys.path)
    status, out, err = run(
        "-o", "trace.json", "--save", "numbers.json", "script.py", "--lr", "0.1", "-o", "x"
    )
    assert (status, err) == (0, "")
    first, _, table = out.partition("\n")
    assert first == "arguments ['--lr', '0.1', '-o', 'x'] beside"
    assert table.startswith("a model on 2 devices: ") and "2 runs of its graphs" in table
    assert "capturing, planning and compiling" in table
    assert sys.path == path and sys.argv[0] == "tpfx"
    assert json.loads((tmp_path / "numbers.json").read_text())["runs"] == 2
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["tid"] for event in events if event["ph"] == "X"} == {0, 1}


@pytest.mark.parametrize(("word", "expected"), [("fail", 1), ("leave", 7)])
def test_the_status_is_the_scripts(run: Run, word: str, expected: int) -> None:
    status, out, err = run("script.py", word)
    assert status == expected and "2 runs of its graphs" in out
    assert ("ValueError: as asked" in err) == (word == "fail")
    if word == "fail":
        assert "script.py" in err and "runpy" not in err and "cli/profile.py" not in err


def test_what_cannot_be_run_or_has_nothing_to_measure(run: Run) -> None:
    status, out, err = run("idle.py")
    assert (status, out) == (0, "idle\n")
    assert err == "tpfx: nothing was measured: idle.py has run no graph of a model that tpfx has compiled\n"
    assert run("-m", "idle")[:2] == (0, "idle\n")
    status, _, err = run("nowhere.py")
    assert status == 2 and err == (
        "tpfx: there is no script nowhere.py; name a Python file, or a module with -m\n"
    )
    status, _, err = run("-o", "no/folder.json", "idle.py")
    assert status == 3 and "make the folder first" in err
