"""The command line: what tpfx would do with a model, without its weights.

    tpfx dump llama --devices 2 --set num_hidden_layers=2

What was asked for is on standard output, progress and errors on standard error. Exit status 0: done; 1: a
problem was found with the model; 2: the command or its input was wrong.
"""

from __future__ import annotations

import gc
import sys
from typing import Annotated

import torch
import typer

from ..errors import InputError, TpfxError
from ..version import __version__
from .cache import cache
from .dump import dump
from .explain import diff, explain
from .export import export
from .plan import plan
from .topology import topology
from .verify import verify

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(dump)
app.command()(plan)
app.command()(explain)
app.command()(diff)
app.command()(verify)
app.command()(export)
app.command()(cache)
app.add_typer(topology)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"tpfx {__version__}, torch {torch.__version__}")
        raise typer.Exit


@app.callback()
def tpfx(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the versions.")
    ] = False,
) -> None:
    """Split PyTorch models over several devices, and see how before doing so.

    No command here needs devices, and only verify runs a model: MODEL is a config.json, the name of an
    architecture, or a function that builds one.

    \b
    tpfx plan llama --devices 8 -o plan.json     bytes, collectives and time; a plan for tpfx.compile
    tpfx dump llama --devices 8                  the parallel graph, one line an op
    tpfx explain llama lm_head --devices 8       why it is split so, and what else would cost
    tpfx diff a.json b.json                      in what two plans differ
    tpfx verify llama --devices 2                a small one, undivided and split, node by node
    tpfx export llama --devices 2 --to hf-tp-plan
    tpfx cache                                   what is kept between processes, and --clear
    """


def main() -> None:
    """Run the command line; every error that tpfx raises on purpose is one line."""
    gc.set_threshold(50_000, 50, 100)  # a capture makes millions of objects, and nearly all stay
    try:
        app()
    except TpfxError as error:
        print(f"tpfx: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
