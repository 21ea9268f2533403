"""Build the extension at first use, and keep it: one file for each release of torch, Python and this source.

    load()          # the module `tpfx_executor`; NoExecutor says why there is none

It is kept in `TPFX_CACHE_DIR`, or tpfx in the user's cache folder.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock  # torch needs it as well

from ..errors import TpfxError

log = logging.getLogger("tpfx")

NAME = "tpfx_executor"
SOURCES = (
    "module.cpp",
    "team.h",
    "program.h",
    "instructions.h",
    "growing.h",
    "arena.h",
    "parcel.h",
    "meeting.h",
    "shared_meeting.h",
)
HERE = Path(__file__).parent


class NoExecutor(TpfxError):
    """The extension cannot be built or loaded here."""


def cache_dir() -> Path:
    """Where what tpfx builds is kept."""
    given = os.environ.get("TPFX_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(home) / "tpfx"


@functools.cache
def load() -> Any:
    """The extension, built if this is the first use of it by this user, with this torch and this Python.

    Raises:
        NoExecutor: there is no compiler, or it fails, or the result cannot be loaded.
    """
    try:
        path = _built()
        spec = importlib.util.spec_from_file_location(NAME, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (OSError, ImportError) as error:
        raise NoExecutor(f"{type(error).__name__}: {error}") from error
    return module


def executor_file() -> Path:
    """The file of the extension, whether or not it has been built."""
    return cache_dir() / f"{NAME}-{_key()}" / f"{NAME}{importlib.machinery.EXTENSION_SUFFIXES[0]}"


def compiler() -> str | None:
    """The C++ compiler that builds it, as a command; None where there is none."""
    return os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)


def _built() -> Path:
    """The file of the extension; processes that want it at once wait for the first to build it."""
    path = executor_file()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / "lock"):
            if not path.exists():
                _build(path)
    return path


def _key() -> str:
    """What the file depends on."""
    text = hashlib.sha256()
    for path in (*(HERE / name for name in SOURCES), Path(__file__)):
        text.update(path.read_bytes())
    for part in (torch.__version__, sys.version, sysconfig.get_platform()):
        text.update(part.encode())
    return f"{torch.__version__}-{text.hexdigest()[:16]}"


def _build(path: Path) -> None:
    """Compile, next to where it goes, and move it there once it is whole."""
    command = compiler()
    if command is None:
        raise NoExecutor("there is no C++ compiler; install g++ or clang++, or name one by CXX")
    log.warning("building tpfx's executor for torch %s: once, about half a minute", torch.__version__)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, path.name)
        words = [*command.split(), str(HERE / SOURCES[0]), "-o", str(made), *_flags()]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            said = next(iter(lines), f"exit code {done.returncode}")
            raise NoExecutor(f"the C++ compiler {command} fails: {said}; name another by CXX")
        made.replace(path)


def _flags() -> list[str]:
    from torch.utils import cpp_extension  # takes a while to import, and only a build needs it

    libraries = cpp_extension.library_paths()
    flags = ["-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"]
    flags += [f"-DTORCH_EXTENSION_NAME={NAME}"]
    flags += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    flags += [f"-I{path}" for path in (*cpp_extension.include_paths(), sysconfig.get_paths()["include"])]
    flags += [f"-L{path}" for path in libraries] + ["-lc10", "-ltorch_cpu", "-ltorch_python"]
    return flags + (["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-pthread"])
