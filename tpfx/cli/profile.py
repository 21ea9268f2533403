"""`tpfx profile`: a script as Python runs it, and what the models that it has compiled did meanwhile."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch.distributed as dist
import typer

from ..console.files import require_writable
from ..console.streams import width
from ..errors import InputError
from ..execution.stopwatch import Stopwatch
from ..export.profile import Profile, save_all, trace_all

# After the script everything is its own, options too.
SETTINGS = {"allow_interspersed_args": False}


def profile(
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="A Python file; with -m, a module.")],
    args: Annotated[list[str] | None, typer.Argument(metavar="ARGS...", help="What is the script's.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write a Chrome trace, a row for each rank."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Write the numbers, as JSON.")
    ] = None,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module, as for python -m.")] = False,
) -> None:
    """Run a script, and say where the time of the models went that it has compiled with tpfx.

    For each rank and module of a model: seconds in ops, in collectives, waiting for other ranks, and outside
    of its graphs; beside what the plan had estimated. It comes after what the script prints, also where that
    fails. The status is the script's. tpfx.profile(model, …) measures a single call.

    \b
      tpfx profile generate.py --tokens 64
      tpfx profile -o trace.json train.py          for chrome://tracing or https://ui.perfetto.dev
      torchrun --nproc-per-node 2 -m tpfx profile train.py
    """
    for file in filter(None, (output, save)):
        require_writable(file)
    if not module and not Path(script).is_file():
        raise InputError(f"there is no script {script}; name a Python file, or a module with -m")
    watch, status = Stopwatch(), 1
    try:
        with watch, _arguments(script, args or [], module):
            status = _run(script, module)
    finally:
        together = status == 0 and dist.is_available() and dist.is_initialized()
        _tell(Profile.of_all(watch, together), output, save, script)
    raise typer.Exit(status)


def _tell(found: list[Profile], output: Path | None, save: Path | None, script: str) -> None:
    if os.environ.get("RANK", "0") != "0":  # of several processes the first tells
        return
    if not found:
        print(
            f"tpfx: nothing was measured: {script} has run no graph of a model that tpfx has compiled",
            file=sys.stderr,
        )
    for one in found:
        print(one.as_text(width()))
    if output is not None:
        trace_all(found, output)
    if save is not None:
        save_all(found, save)


@contextmanager
def _arguments(script: str, args: list[str], module: bool) -> Iterator[None]:
    """What Python has for a script: its arguments, and where it finds modules."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = [script, *args]
    sys.path.insert(0, os.getcwd() if module else str(Path(script).resolve().parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path


def _run(script: str, module: bool) -> int:
    """Run a script; its status. Its errors are told as Python tells them."""
    try:
        if module:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception as error:
        _print(error)
        return 1
    return 0


def _print(error: Exception) -> None:
    """An error, without the frames that lead to the script."""
    trace = error.__traceback__
    leading = (__file__, runpy.__file__, "<frozen runpy>")
    while trace is not None and trace.tb_frame.f_code.co_filename in leading:
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)
