"""Environment variables are documented in one place."""

from __future__ import annotations

import re
from pathlib import Path

from tpfx.console.environment import VARIABLES, unknown

PACKAGE = Path(__file__).parents[2] / "tpfx"


def test_all_that_are_read_are_in_the_table() -> None:
    others = [path for path in PACKAGE.rglob("*.py") if path.name != "environment.py"]
    read = {name for path in others for name in re.findall(r'"(TPFX_[A-Z_]+)"', path.read_text())}
    assert read == set(VARIABLES)


def test_what_is_none_of_them_is_found() -> None:
    assert unknown({"TPFX_CAHCE": "0", "TPFX_CACHE": "0", "PATH": ""}) == ["TPFX_CAHCE"]
