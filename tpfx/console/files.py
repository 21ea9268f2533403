"""Files that tpfx writes for a user: what goes wrong is one sentence, and nothing half-written stays.

require_writable(path)          # before minutes of work for it
write(path, text)
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..errors import FileError

_REMEDIES = {
    errno.ENOSPC: "make room there, or write to another disk",
    errno.EDQUOT: "make room there, or write to another disk",
    errno.ENOENT: "make the folder first, or name another",
    errno.ENOTDIR: "a part of it is a file; name another",
    errno.EISDIR: "name a file in that folder",
    errno.EACCES: "name a folder that you may write to",
    errno.EPERM: "name a folder that you may write to",
    errno.EROFS: "name a folder that can be written to",
}


def unwritten(path: object, error: OSError) -> FileError:
    """What says that a file cannot be written, why, and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "write to another place")
    return FileError(f"cannot write {path}: {error.strerror or error}; {remedy}")


def require_writable(path: str | Path) -> None:
    """Refuse a file that cannot be written; it is left as it is.

    Raises:
        FileError: its folder is not there, or may not be written to, or it is a folder.
    """
    there = os.path.lexists(path)
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise unwritten(path, error) from error
    if not there:
        os.unlink(path)


def write(path: str | Path, text: str) -> None:
    """Write a file, as UTF-8. One that was not there before is not there afterwards, if that fails.

    Raises:
        FileError: it cannot be written.
    """
    there = os.path.lexists(path)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        if not there and os.path.lexists(path):
            os.unlink(path)
        raise unwritten(path, error) from error
