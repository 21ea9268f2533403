"""Where tests lie: in the rooms of tpfx, each file by itself, what they share in `tests/support`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BESIDE_ROOMS = {"docs", "end_to_end", "examples", "support", "goldens"}


def faults(root: Path) -> list[str]:
    """What is wrong with the tests and benchmarks of a repository."""
    found = []
    for path in sorted([*root.glob("tests/**/*.py"), *root.glob("benchmarks/*.py")]):
        name, text = path.relative_to(root), path.read_text()
        found += [f"{name} imports {other}" for other in imported_tests(text)]
        if path.name == "__init__.py" and ast.get_docstring(ast.parse(text)) is None:
            found.append(f"{name} does not say what it is for")
    rooms = {path.name for path in (root / "tpfx").iterdir()} | BESIDE_ROOMS
    for path in (root / "tests").iterdir():
        if path.is_dir() and any(path.glob("*.py")):
            found += [] if path.name in rooms else [f"tests/{path.name} is no room of tpfx"]
            found += [] if (path / "__init__.py").exists() else [f"tests/{path.name} has no __init__.py"]
    return found


def imported_tests(text: str) -> list[str]:
    """The test modules that a file imports, also in the programs that it launches."""
    return re.findall(r"^\s*(?:from|import) (tests\.(?:\w+\.)*test_\w+)", text, re.MULTILINE)


def test_no_test_module_imports_another_and_every_directory_is_a_room():
    assert faults(ROOT) == []


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        (
            "tests/ir/test_axes.py",
            "from tests.ir.test_layout import DIMS",
            "tests/ir/test_axes.py imports tests.ir",
        ),
        (
            "tests/ir/test_axes.py",
            "RUN = '''\n    import tests.test_api\n'''",
            "tests/ir/test_axes.py imports",
        ),
        ("benchmarks/zoo.py", "from tests.ir.test_axes import SIZES", "benchmarks/zoo.py imports tests.ir"),
        ("tests/ir/__init__.py", "", "tests/ir/__init__.py does not say"),
        ("tests/other/__init__.py", '"""Others."""', "tests/other is no room"),
        ("tests/passes/test_infer.py", "", "tests/passes has no __init__.py"),
    ],
)
def test_what_is_planted_is_found(tmp_path: Path, file: str, text: str, fault: str):
    for room in ("ir", "passes"):
        (tmp_path / "tpfx" / room).mkdir(parents=True)
    for path, words in {"tests/ir/__init__.py": '"""The IR."""', file: text}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(words)
    found = faults(tmp_path)
    assert len(found) == 1 and found[0].startswith(fault), found
