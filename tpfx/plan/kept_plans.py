"""Choices that earlier processes have made, in files: a graph that is known is not solved again.

kept = of_user()               # in the user's cache folder; None where TPFX_CACHE=0
kept.put(key, choices)         # written beside its place and moved there: others see all of it or nothing
kept.get(key)                  # None where there is none, or a broken or foreign file, which is written anew

The folder is `plans` in that of the executor, see `native.build`. A key says of which graph the choices are,
and all else that choosing goes by; the name of a file also says of which versions of tpfx and torch.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..ir.parallel_graph import Solution
from ..native.build import cache_dir
from ..passes.apply_plan import GraphChoices
from ..version import __version__
from .plan_json import written

log = logging.getLogger("tpfx")

SCHEMA = 1
AT_MOST = 512  # files; then the half that was used longest ago goes
ROOMS = ("ir", "rules", "planning", "passes")  # whose code choices depend on


@dataclass(frozen=True)
class KeptPlans:
    """A folder of choices.

    Attributes:
        folder: it is made when something is first kept.
    """

    folder: Path

    def get(self, key: str) -> GraphChoices | None:
        """What was kept; a file that cannot be read counts as none."""
        path = self.path(key)
        try:
            found = _read(path.read_text(), key)
            os.utime(path)
            return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            log.debug("%s is no plan that this tpfx can read, and is made anew: %r", path, problem)
            return None

    def put(self, key: str, choices: GraphChoices) -> None:
        """Keep choices; where nothing can be written, none are kept."""
        path = self.path(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(path, _text(key, choices))
            self._make_room()
        except OSError as problem:
            log.debug("a plan is not kept in %s: %s", path, problem)

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.folder / f"{_digest(f'{key} {_versions()}')[:32]}.json"

    def files(self) -> list[Path]:
        """All files of plans, those used longest ago first."""
        return sorted(self.folder.glob("*.json"), key=_used)

    def _make_room(self) -> None:
        files = self.files()
        for path in files[: len(files) // 2] if len(files) > AT_MOST else ():
            path.unlink(missing_ok=True)


def of_user() -> KeptPlans | None:
    """Where the user's plans are kept; None where the environment says TPFX_CACHE=0."""
    return None if os.environ.get("TPFX_CACHE") == "0" else KeptPlans(cache_dir() / "plans")


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process has removed it
        return 0.0


@functools.cache
def _versions() -> str:
    """What choices depend on beside their key: releases, and the files of the rooms that choose."""
    here = Path(__file__).parent.parent
    files = (path for room in ROOMS for path in sorted((here / room).glob("*.py")))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{SCHEMA} {__version__} {torch.__version__} {_digest(str(stats))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


# To JSON and back: fields as a graph has them in a plan's file.


def _text(key: str, choices: GraphChoices) -> str:
    solution = choices.solution
    graph = {
        "optimal": solution.optimal,
        "cost": solution.cost,
        "bound": solution.bound,
        "width": solution.width,
        "ops": list(choices.ops),
    }
    return written({"schema": SCHEMA, "key": key, "digest": _digest(json.dumps(graph)), "graph": graph})


def _read(text: str, key: str) -> GraphChoices:
    found: Mapping[str, Any] = json.loads(text)
    graph = found["graph"]
    if found["schema"] != SCHEMA or found["key"] != key or found["digest"] != _digest(json.dumps(graph)):
        raise ValueError("its contents are not those that were written for this graph")
    solution = Solution([], graph["cost"], graph["bound"], graph["optimal"], graph["width"])
    return GraphChoices(graph["ops"], {}, solution)
