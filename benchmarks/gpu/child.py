"""A process that runs cases: their names come in, one a line, and a line of JSON for each goes out.

python -m benchmarks.gpu.child cuda:0,cuda:0 [small]
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
import warnings
from typing import Any

import torch

from .cases import CASES
from .tiny import Where


def run(name: str, where: Where) -> dict[str, Any]:
    """What a case found, or what it raised and where."""
    torch._dynamo.reset()
    start = time.perf_counter()
    try:
        found = {"ok": True, **_result(name, where)}
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        text = next(iter(str(error).strip().splitlines()), "")
        found = {"ok": False, "error": f"{type(error).__name__}: {text[:300]}"}
        found["at"] = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames]
    return {"case": name, **found, "s": round(time.perf_counter() - start, 1)}


def _result(name: str, where: Where) -> dict[str, Any]:
    running = CASES[name].run(where)
    if isinstance(running, dict):
        return running
    next(running)
    print(json.dumps({"ready": name}), flush=True)
    sys.stdin.readline()
    try:
        next(running)
    except StopIteration as end:
        found: dict[str, Any] = end.value
        return found
    raise AssertionError(f"{name} yields twice")


def main() -> None:
    """Answer until there are no more names."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    where = Where(tuple(sys.argv[1].split(",")), small="small" in sys.argv[2:])
    while line := sys.stdin.readline().strip():
        print(json.dumps(run(line, where)), flush=True)


if __name__ == "__main__":
    main()
