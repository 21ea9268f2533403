"""`tpfx topology`: what collectives and arithmetic cost on the machine at hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..console.files import require_writable
from .arguments import step
from .measure_topology import measure as measured

topology = typer.Typer(name="topology", no_args_is_help=True)


@topology.callback()
def _group() -> None:
    """What collectives and arithmetic cost.

    \b
      tpfx topology measure -o here.json
    """


@topology.command()
def measure(
    devices: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DEVICE]...", help="cuda:0 cuda:1, or cpu cpu; all GPUs if left out."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to a file instead.")
    ] = None,
) -> None:
    """Measure the devices at hand, and write what `tpfx plan --topology FILE` reads.

    \b
      tpfx topology measure -o here.json
      tpfx topology measure cpu cpu
    """
    if output is not None:
        require_writable(output)
    with step("measuring"):
        found = measured(devices or None)
    if output is None:
        print(json.dumps(asdict(found), indent=1))
    else:
        found.save(output)
