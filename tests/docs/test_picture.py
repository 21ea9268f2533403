"""The picture in the README is what the command prints that the README names."""

from __future__ import annotations

import os
import re
import shlex

import pytest
from typer.testing import CliRunner

from tests.support.pages import ROOT
from tpfx.cli import app


@pytest.mark.slow
@pytest.mark.recent_models
def test_the_picture_is_drawn_by_its_command() -> None:
    (command,) = re.findall(r"drawn by `tpfx ([^`]*--format svg)`", (ROOT / "README.md").read_text())
    picture = ROOT / "docs" / "llama.svg"
    assert f'src="{picture.relative_to(ROOT)}"' in (ROOT / "README.md").read_text()
    done = CliRunner().invoke(app, shlex.split(command))
    assert done.exit_code == 0, done.output
    if os.environ.get("TPFX_UPDATE_GOLDENS"):
        picture.write_text(done.stdout)
    assert done.stdout == picture.read_text()
