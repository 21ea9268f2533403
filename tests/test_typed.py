"""Who uses tpfx sees its types: mypy reads `tests/support/user.py`, which calls every public name."""

from __future__ import annotations

import ast
import tomllib

import tpfx
from tests.support.fresh_python import ROOT

USER = ROOT / "tests/support/user.py"


def names_in(text: str) -> set[str]:
    """What a file takes from tpfx."""
    return {
        node.attr
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tpfx"
    }


def test_the_file_uses_every_public_name_and_no_other() -> None:
    assert names_in("import tpfx\ntpfx.plan(x).save\nother.load") == {"plan"}
    assert names_in(USER.read_text()) == set(tpfx.__all__)


def test_mypy_reads_it_as_strictly_as_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["strict"] and {"tpfx", "examples", "tests/support/user.py"} <= set(settings["files"])
    assert (ROOT / "tpfx/py.typed").exists()
