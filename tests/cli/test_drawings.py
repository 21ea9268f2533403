"""The command line writes drawings."""

import json
import re
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


def told(monkeypatch, capsys, *words):
    """What a command ends with, and says."""
    settings = [word for key, value in GPT2.items() for word in ("--set", f"{key}={value}")]
    monkeypatch.setattr(sys, "argv", ["tpfx", "plan", "gpt2", "--length", "16", *words, *settings])
    with pytest.raises(SystemExit) as exit_:
        main()
    return exit_.value.code, capsys.readouterr()


def test_plans_are_written_as_a_page_with_a_profile(monkeypatch, capsys, tmp_path):
    profile, page = tmp_path / "profile.json", tmp_path / "gpt2.html"
    profile.write_text(
        json.dumps(
            [{"rank": rank, "layer": "h.0", "kind": "compute", "start": 0, "seconds": 1} for rank in (0, 1)]
        )
    )
    options = ["--compare", "1,2,3", "--page", str(page), "--profile", str(profile)]
    code, said = told(monkeypatch, capsys, *options)
    assert code == 0
    assert f"wrote {page}" in said.err
    text = page.read_text(encoding="utf-8")
    found = json.loads(re.search(r'id="plan">(.*)</script>', text)[1])
    assert [sheet["devices"] for sheet in found["sheets"]] == [1, 2, 3]
    assert (found["shown"], len(found["measured"])) == (1, 2), "that which was measured is on show"
    assert [sheet["verdict"]["fits"] for sheet in found["sheets"]] == [True] * 3


def test_a_profile_is_for_a_page_of_as_many_devices(monkeypatch, capsys, tmp_path):
    profile = tmp_path / "profile.json"
    profile.write_text('[{"rank": 2, "layer": "", "kind": "wait", "start": 0, "seconds": 1}]')
    code, said = told(monkeypatch, capsys, "-n", "2", "--profile", str(profile))
    assert (code, "name its file with --page" in said.err) == (2, True)
    options = ["-n", "2", "--profile", str(profile), "--page", str(tmp_path / "gpt2.html")]
    code, said = told(monkeypatch, capsys, *options)
    assert (code, "is of 3 devices, which is not planned for" in said.err) == (2, True)
    assert not (tmp_path / "gpt2.html").exists()
