"""`tpfx verify`: whether a split model computes what it computes undivided, node by node."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..capture.inputs import Inputs
from ..console.logs import VARIABLE
from ..errors import InputError
from ..verify.model import verify as verified
from ..verify.shrink_config import shrunk
from .arguments import DevicesOption, ModelArgument, SettingsOption, require_devices, step
from .models import Built, build, explained, inputs_of, of_config, parse_settings, read_config


def verify(
    model: ModelArgument,
    devices: DevicesOption,
    settings: SettingsOption = None,
    train: Annotated[bool, typer.Option("--train", help="Forward and backward, in training mode.")] = False,
    real: Annotated[
        bool,
        typer.Option("--real", help="The directory's own weights and sizes, not small random ones."),
    ] = False,
    batch: Annotated[int, typer.Option(help="Sequences, or images, in the input.")] = 2,
    length: Annotated[int, typer.Option(help="Tokens in each sequence.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the random weights and inputs.")] = 0,
) -> None:
    """Run a model undivided and split, node by node, on the CPU, and name the first node that differs.

    A small model of the same architecture is made, with random weights: two layers, about 64 wide. --set
    changes its sizes. Of each graph the ranks' code is checked first: every partial sum summed once, the same
    collectives in the same order on all ranks, shapes that agree. Exits with 1 where anything is wrong.

    \b
      tpfx verify llama --devices 2
      tpfx verify ./my-model --devices 3 --train
      tpfx verify mine.models:build --devices 2
    """
    require_devices(devices)
    torch.manual_seed(seed)
    with step("building the model"):
        built = _built(model, settings or [], batch, length, real)
    with _without_warnings(), step(f"verifying it on {devices} devices"):
        found = verified(built.model, devices, built.inputs, train=train)
    print(found)
    raise typer.Exit(0 if found.right else 1)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Dynamo tells at length of ops that refuse fake tensors; who asks for logs of tpfx gets those too."""
    before = logging.root.manager.disable
    if not os.environ.get(VARIABLE):
        logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _built(model: str, settings: list[str], batch: int, length: int, real: bool) -> Built:
    """A model with contents, and inputs that are no zeros."""
    if ":" in model:
        built = build(model, settings, batch, length, meta=False)
        return Built(built.model, built.inputs)
    if real:
        return _loaded(model, settings, batch, length)
    config = shrunk(read_config(model, {}), own=parse_settings(settings))
    config.dtype = torch.float32
    small = of_config(config, meta=False).eval()
    return Built(small, _drawn(inputs_of(small, batch, length, labels=False), config), config)


def _loaded(model: str, settings: list[str], batch: int, length: int) -> Built:
    """The weights of a directory.

    Raises:
        InputError: there is none.
    """
    if settings or not Path(model).is_dir():
        raise InputError(
            f"--real takes a directory with weights, as it is; {model} is none, or --set is given"
        )
    config = read_config(model, {})
    like = type(of_config(config))
    with explained(f"cannot load the weights of {model}"):
        loaded = like.from_pretrained(model, local_files_only=True).eval()  # type: ignore[attr-defined]
    return Built(loaded, _drawn(inputs_of(loaded, batch, length, labels=False), config), config)


def _drawn(inputs: dict[str, torch.Tensor], config: Any) -> Inputs:
    """Random contents for inputs: token ids of the vocabulary, or images."""
    size = getattr(config, "vocab_size", 0) or 2
    return {
        name: torch.randn_like(value)
        if value.is_floating_point()
        else torch.randint(min(3, size - 1), size, value.shape)
        for name, value in inputs.items()
    }
