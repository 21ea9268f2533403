"""What programs that measure speed have in common on the command line: options, and where figures go."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

Models = Annotated[list[str] | None, typer.Option("--model", help="llama, opt or gpt2; may be repeated")]
Devices = Annotated[int, typer.Option(min=1, help="CPU devices, one thread each")]
Repeats = Annotated[int, typer.Option(min=1, help="rounds that are timed")]
Patience = Annotated[float, typer.Option(help="seconds to wait for other processes, in all")]
Prompt = Annotated[int, typer.Option(min=1, help="tokens of the prompt")]
WithPeer = Annotated[bool, typer.Option("--peer/--no-peer", help="measure the library tensor_parallel too")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="write all figures to this file; - is the standard output")
]

STANDARD_OUTPUT = Path("-")


def console_beside(json_file: Path | None) -> Console:
    """Where tables go: not among figures on the standard output."""
    return Console(file=sys.stderr if json_file == STANDARD_OUTPUT else sys.stdout, highlight=False)


def write_figures(figures: dict[str, Any], json_file: Path | None) -> None:
    """Write all figures, if anyone asked for them."""
    text = json.dumps(figures, indent=1)
    if json_file == STANDARD_OUTPUT:
        print(text)
    elif json_file is not None:
        json_file.write_text(text + "\n")
