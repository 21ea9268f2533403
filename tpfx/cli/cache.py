"""`tpfx cache`: what tpfx keeps between processes, and to clear it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ..formatting import bytes_text
from ..native.build import NAME, cache_dir
from ..plan.kept_plans import KeptPlans


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it.")] = False,
) -> None:
    """What is kept between processes: plans, and executors that were built.

    \b
      tpfx cache
      tpfx cache --clear
      TPFX_CACHE_DIR=/elsewhere tpfx cache
    """
    print(cache_dir())
    for name, said in contents():
        print(f"{name:10} {said}")
    if clear:
        for path in _plans():
            path.unlink(missing_ok=True)
        for folder in _executors():
            shutil.rmtree(folder, ignore_errors=True)
        print("cleared")


def contents() -> Iterator[tuple[str, str]]:
    """Of each kind of what is kept, how many and how much."""
    for name, found in (("plans", _plans()), ("executors", _executors())):
        yield name, f"{len(found):5} {bytes_text(sum(map(_bytes, found)))}"


def _plans() -> list[Path]:
    return KeptPlans(cache_dir() / "plans").files()


def _executors() -> list[Path]:
    return sorted(cache_dir().glob(f"{NAME}-*/"))


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)
