"""The command line writes drawings."""

import sys

import pytest

from tests.support.drawn import GPT2
from tpfx.cli import main


@pytest.mark.parametrize(
    ("format", "start"),
    [
        ("html", "<!doctype html>"),
        ("svg", "<svg "),
        ("dot", "digraph "),
        ("graphml", "<graphml "),
        ("model-explorer", "{"),
    ],
)
def test_the_command_line_writes_them(monkeypatch, capsys, format, start):
    settings = [word for key, value in GPT2.items() for word in ("--set", f"{key}={value}")]
    monkeypatch.setattr(sys, "argv", ["tpfx", "dump", "gpt2", "-n", "2", "--format", format, *settings])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(start)


def test_a_drawing_is_of_the_parallel_graph(monkeypatch, capsys):
    arguments = ["tpfx", "dump", "gpt2", "-n", "2", "--format", "svg", "--stage", "axes"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert "leave out --stage axes" in capsys.readouterr().err
