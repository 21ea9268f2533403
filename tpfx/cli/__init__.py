"""The command line: what tpfx would do with a model, without its weights.

    tpfx dump llama --devices 2 --set num_hidden_layers=2

What was asked for is on standard output, progress and errors on standard error, each of those one sentence.
`STATUSES` are for scripts.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import torch
import typer

from ..console import environment, interrupts
from ..console.logs import heed
from ..console.streams import take_all_characters
from ..errors import InputError, TpfxError
from ..version import __version__
from .cache import cache
from .doctor import doctor
from .dump import dump
from .explain import diff, explain
from .export import export
from .plan import plan
from .profile import SETTINGS, profile
from .topology import topology
from .verify import verify

UNREAD = 141  # as shells have it: 128 and the signal's number

STATUSES = {
    0: "done, and the answer is yes: it fits, nothing differs, all is right",
    1: "done, and the answer is no",
    2: "the command, or what it was given, is wrong",
    3: "it could not be done: the model cannot be captured, a file cannot be written",
    interrupts.STATUS: "interrupted",
    UNREAD: "nobody reads the output any more",
}

# What the command line raises where it is used wrongly; its module is another in each release of typer.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

_EPILOG = "\n\n".join(
    f"\b\n{title}:\n" + "\n".join(f"  {line}" for line in lines)
    for title, lines in (
        ("Exit status", [f"{status:<4} {meaning}" for status, meaning in STATUSES.items()]),
        ("Environment", environment.table().splitlines()),
    )
)

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
for _command, _purpose in (
    (plan, "Does it fit, how fast, does it pay?"),
    (dump, "How a model is split, one line an op."),
    (explain, "Why it is split so, and what else costs."),
    (diff, "In what two plans differ."),
    (verify, "Whether it computes the same when split."),
    (export, "The plan for transformers, or for torch."),
    (doctor, "What is here, and what of it goes wrong."),
    (cache, "What is kept between processes."),
):
    app.command(short_help=_purpose)(_command)
app.command(short_help="A script, and what its models took.", context_settings=SETTINGS)(profile)
app.add_typer(topology)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"tpfx {__version__}, torch {torch.__version__}")
        raise typer.Exit


@app.callback(epilog=_EPILOG)
def tpfx(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the versions.")
    ] = False,
) -> None:
    """Split PyTorch models over several devices, and see how before doing so.

    No command needs devices but profile, and none runs a model but that and verify. MODEL is a folder with a
    config.json, the name of an architecture, or package.module:function for one of your own.

    \b
    tpfx plan llama --devices 8 -o plan.json     does it fit, how fast, does it pay? a plan for tpfx.compile
    tpfx dump llama --devices 8                  the parallel graph, one line an op
    tpfx explain llama lm_head --devices 8       why it is split so, and what else would cost
    tpfx diff a.json b.json                      in what two plans differ
    tpfx verify llama --devices 2                a small one, undivided and split, node by node
    tpfx export llama --devices 2 --to hf-tp-plan
    tpfx profile script.py                       a script, and where the time of its models went
    tpfx topology measure -o here.json           what collectives cost here, for --topology here.json
    tpfx doctor                                  what is here, and what of it is known to go wrong
    tpfx cache                                   what is kept between processes, and --clear
    """


def main() -> None:
    """Run the command line, and end with one of `STATUSES`; what goes wrong is one sentence."""
    take_all_characters()
    gc.set_threshold(50_000, 50, 100)  # a capture makes millions of objects, and nearly all stay
    with interrupts.interruptible() as interrupted:
        status = _status(interrupted)
    sys.exit(status)


def _status(interrupted: Callable[[], bool]) -> int:
    """Run the command line; its status."""
    output = sys.stdout
    try:
        heed()
        status = int(app(prog_name="tpfx", standalone_mode=False) or 0)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return interrupts.STATUS
    except SystemExit as ended:  # by typer, which puts another output in place where a pipe has broken
        return int(ended.code or 0) if sys.stdout is output else UNREAD
    except Exception as error:
        return interrupts.STATUS if interrupted() else _told(error)


def _told(error: Exception) -> int:
    """Say what went wrong, on standard error; the status for it."""
    match error:
        case _UsageError():
            return _told_usage(error)
        case TpfxError():
            return _say(str(error), 2 if isinstance(error, InputError) else 3)
        case BrokenPipeError():
            _drop_output()
            return UNREAD
        case OSError():
            _drop_output()
            where = error.filename or "standard output"
            return _say(f"{where}: {error.strerror or error}; make room there, or name another place", 3)
    traceback.print_exception(error)
    return _say("this is a fault of tpfx, or of what it uses; please report it, with the above", 3)


def _told_usage(error: Exception) -> int:
    message = str(error.format_message())  # type: ignore[attr-defined]
    if message.startswith("Usage:"):  # there were no arguments, and this is the help
        print(message, file=sys.stderr)
        return 2
    context = getattr(error, "ctx", None)
    path = "tpfx" if context is None else context.command_path
    return _say(f"{message[:1].lower()}{message[1:].rstrip('.')}; {path} --help says what there is", 2)


def _say(sentence: str, status: int) -> int:
    print(f"tpfx: {' '.join(sentence.split())}", file=sys.stderr)
    return status


def _drop_output() -> None:
    """What could not be written is not tried again when the process ends, which would tell of it again."""
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
