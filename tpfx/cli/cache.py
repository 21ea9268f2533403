"""`tpfx cache`: what tpfx keeps between processes, and to clear it."""

from __future__ import annotations

import shutil
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
    plans = KeptPlans(cache_dir() / "plans").files()
    executors = sorted(cache_dir().glob(f"{NAME}-*/"))
    print(cache_dir())
    for name, found in (("plans", plans), ("executors", executors)):
        print(f"{name:10} {len(found):5} {bytes_text(sum(map(_bytes, found)))}")
    if clear:
        for path in plans:
            path.unlink(missing_ok=True)
        for folder in executors:
            shutil.rmtree(folder, ignore_errors=True)
        print("cleared")


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)
