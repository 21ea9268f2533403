"""What goes wrong with a file is one sentence with a remedy, and nothing half-written stays."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

import tpfx
from tpfx.console.files import require_writable, write


def failing(code: int) -> Any:
    def write_text(self: Path, text: str, **_: Any) -> int:
        self.write_bytes(text[:3].encode())
        raise OSError(code, os.strerror(code), str(self))

    return write_text


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.ENOSPC, "No space left on device; make room there, or write to another disk"),
        (errno.EROFS, "Read-only file system; name a folder that can be written to"),
        (errno.EIO, "Input/output error; write to another place"),
    ],
)
def test_a_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, sentence: str
) -> None:
    monkeypatch.setattr(Path, "write_text", failing(code))
    file = tmp_path / "here.json"
    with pytest.raises(tpfx.FileError, match=f"^cannot write {file}: {sentence}$") as found:
        tpfx.Topology().save(file)
    assert isinstance(found.value, OSError) and not file.exists()


def test_what_cannot_be_written_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, remedy in ((tmp_path, "name a file in that folder"), (tmp_path / "a" / "b", "make the folder")):
        with pytest.raises(tpfx.FileError, match=remedy):
            require_writable(path)

    def opened(path: Any, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr("builtins.open", opened)
    with pytest.raises(tpfx.FileError, match="Permission denied; name a folder that you may write to"):
        require_writable(tmp_path / "plan.json")


def test_to_ask_changes_nothing(tmp_path: Path) -> None:
    require_writable(tmp_path / "new")
    write(tmp_path / "old", "µ")
    require_writable(tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_bytes() == "µ".encode()
