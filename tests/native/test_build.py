"""The extension is built once for each torch; where it cannot be, graphs run from Python, which is said."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

import tpfx
from tests.support.nets import Net
from tpfx.lowering import device_compiler
from tpfx.native import build, rank_program


def test_it_is_built_once_and_kept() -> None:
    path = build._built()
    before = path.stat().st_mtime_ns
    assert build._built() == path and path.stat().st_mtime_ns == before
    assert torch.__version__ in path.parent.name and path.parent.parent == build.cache_dir()
    assert not [one for one in path.parent.iterdir() if one.name not in (path.name, "lock")]


def test_the_key_follows_the_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in build.SOURCES:
        (tmp_path / name).write_bytes((build.HERE / name).read_bytes())
    before = build._key()
    monkeypatch.setattr(build, "HERE", tmp_path)
    assert build._key() == before
    (tmp_path / build.SOURCES[-1]).write_text("// changed")
    assert build._key() != before


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user who has built nothing yet."""
    monkeypatch.setenv("TPFX_CACHE_DIR", str(tmp_path))
    build.load.cache_clear()
    device_compiler._say_once.cache_clear()
    yield tmp_path
    build.load.cache_clear()


def test_without_a_compiler_graphs_run_from_python(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    plain, x = Net(), torch.randn(4, 8)
    for _ in range(2):
        split = tpfx.compile(Net(), ["cpu", "cpu"])
        with caplog.at_level(logging.WARNING, "tpfx"):
            torch.testing.assert_close(split(x), plain(x))
        assert ", run by eager" in str(tpfx.report(split))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("graphs run op by op from Python") and "install g++ or clang++" in said
    assert not list(elsewhere.rglob("*.so"))


def test_a_compiler_that_fails_is_quoted(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(build.NoExecutor, match="false fails: exit code 1"):
        build.load()


def test_a_file_that_cannot_be_loaded_is_named(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = elsewhere / "broken.so"
    path.write_text("no library")
    monkeypatch.setattr(build, "_built", lambda: path)
    with pytest.raises(build.NoExecutor, match=r"ImportError: .*broken\.so"):
        build.load()


def test_programs_are_not_made_by_halves(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the executor that is not about its build is an error."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(rank_program.RankProgram, "_instruct", fail)
    monkeypatch.setenv("TPFX_CACHE_DIR", "")
    split = tpfx.compile(Net(), ["cpu", "cpu"])
    with pytest.raises(ZeroDivisionError):
        split(torch.randn(4, 8))
