"""Arguments and options that several commands have, and what they say while they work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import torch
import typer
from rich.console import Console

from ..console.progress import working
from ..errors import InputError
from ..planning.hardware import HARDWARE

LARGE = 600  # weights, about 66 layers of a Llama

console = Console(stderr=True, highlight=False, soft_wrap=True)


class PhaseName(StrEnum):
    """What of a model is planned."""

    prefill = "prefill"
    decode = "decode"
    train = "train"


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A directory with a config.json, a transformers model type (llama, gpt2), or "
        "package.module:function that returns a model, or (model, inputs).",
    ),
]
DevicesOption = Annotated[
    int, typer.Option("--devices", "-n", metavar="N", help="How many devices to split it over.")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a field of the config, as often as needed."),
]
BatchOption = Annotated[int, typer.Option(help="Sequences, or images, in the example input.")]
LengthOption = Annotated[int, typer.Option(help="Tokens in each sequence.")]
FullLengthOption = Annotated[
    int | None,
    typer.Option(help="Tokens in each sequence; 4,096, or what the model has positions for, if left out."),
]
SymbolicOption = Annotated[
    bool | None,
    typer.Option(
        "--symbolic/--no-symbolic",
        help="Leave batch and length open (s0, s1), or fix them, which takes half the time. If left out: "
        "open, but fixed for a model of more than 600 weights.",
    ),
]
TopologyOption = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        autocompletion=lambda incomplete: [name for name in HARDWARE if name.startswith(incomplete)],
        help=f"What collectives and arithmetic cost: {', '.join(HARDWARE)}; or a file that "
        "`tpfx topology measure` wrote.",
    ),
]

DeviceTypeOption = Annotated[
    str | None,
    typer.Option(
        "--device-type",
        metavar="cpu|cuda",
        help="Whose kernels the graphs have; by default those of a GPU where there is one.",
    ),
]


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say on standard error what is being done, and how long it took."""
    start = time.perf_counter()
    with working(what):
        yield
    if os.environ.get("TPFX_PROGRESS") != "0":
        console.print(f"{what}: {time.perf_counter() - start:.1f} s")


def leaves_open(symbolic: bool | None, model: torch.nn.Module) -> bool:
    """Whether sizes are left open: as the user says, and otherwise unless the model is large."""
    large = sum(1 for _ in model.parameters()) > LARGE
    if symbolic is None and large:
        console.print(
            "a large model: its sizes are fixed; --symbolic leaves them open, and takes twice as long"
        )
    return not large if symbolic is None else symbolic


def require_devices(devices: int) -> None:
    """Refuse fewer than one device.

    Raises:
        InputError: that is so.
    """
    if devices < 1:
        raise InputError(f"--devices {devices}: it must be at least 1")
