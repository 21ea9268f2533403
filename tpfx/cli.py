"""The command line: what tpfx would do with a model, without its weights.

    tpfx dump llama --devices 2 --set num_hidden_layers=2

What was asked for is on standard output, progress and errors on standard error. Exit status 0: done; 1: a
problem was found with the model; 2: the command or its input was wrong.
"""

from __future__ import annotations

import difflib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from .capture import capture, plan_graphs
from .errors import InputError, TpfxError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
console = Console(stderr=True, highlight=False)


def main() -> None:
    """Run the command line; every error that tpfx raises on purpose is one line."""
    try:
        app()
    except TpfxError as error:
        print(f"tpfx: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


@app.callback()
def tpfx() -> None:
    """Split PyTorch models over several devices, and see how before doing so.

    No command here needs weights or devices: a model is a config.json, or the name of an architecture.

    \b
    tpfx dump llama --devices 2 --set num_hidden_layers=2
    """


@app.command()
def dump(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A directory with a config.json, or a transformers model type (llama, gpt2).",
        ),
    ],
    devices: Annotated[
        int, typer.Option("--devices", "-n", metavar="N", help="How many devices to split it over.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a field of the config, as often as needed."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences in the example input.")] = 2,
    length: Annotated[int, typer.Option(help="Tokens in each of them.")] = 128,
    symbolic: Annotated[bool, typer.Option(help="Leave batch and length open (s0, s1), or fix them.")] = True,
) -> None:
    """Print how a model is split: its parallel graph, one line an op.

    \b
    Each line: name, type, op. In the types, 4096/2 is a dimension divided in 2, and + marks addends:
    every rank has one, until an all_reduce. The inputs show what a weight's dimensions are made of;
    an axis has the same letter wherever it occurs.

    \b
    A small Llama on 2 devices, and then only what they send each other:
      tpfx dump llama --devices 2 --set num_hidden_layers=2
      tpfx dump llama --devices 2 --set num_hidden_layers=2 | grep -E 'all_reduce|all_gather|gathered'

    \b
    A checkpoint that does not fit on one device (only its config.json is read):
      tpfx dump ./Llama-3.1-405B --devices 8
    """
    for option, number in (("--devices", devices), ("--batch", batch), ("--length", length)):
        if number < 1:
            raise InputError(f"{option} {number}: it must be at least 1")
    with _step("reading the config"):
        config = _config(model, _parse_settings(settings or []))
    with _step("building the model, without weights"):
        built = _build(config)
        inputs = _token_inputs(built, batch, length)
    with _step("capturing its graph"):
        captured = capture(built, inputs, symbolic=symbolic)
    with _step(f"planning for {devices} devices"):
        plans = plan_graphs(captured, devices)
    print("\n\n".join(str(plan) for plan in plans))


@contextmanager
def _step(what: str) -> Iterator[None]:
    """Say on standard error what is being done, and how long it took."""
    start = time.perf_counter()
    with console.status(what):
        yield
    console.print(f"{what}: {time.perf_counter() - start:.1f} s")


def _parse_settings(settings: list[str]) -> dict[str, Any]:
    """`key=value` pairs; a value is JSON, or a string where it is not."""
    parsed = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise InputError(f"--set {setting}: write KEY=VALUE, such as --set num_hidden_layers=2")
        try:
            parsed[key] = json.loads(value)
        except json.JSONDecodeError:
            parsed[key] = value
    return parsed


def _config(model: str, settings: Mapping[str, Any]) -> Any:
    """The config of a directory or of a model type, with some of its fields changed."""
    with _explained(f"cannot read a config of {model}"):
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    fields = _fields(model)
    kind = fields.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise InputError(
            _unknown(f"{kind} is not a transformers model type", str(kind), list(CONFIG_MAPPING))
        )
    cls = CONFIG_MAPPING[kind]
    with _explained(f"the config of {model} is not valid"):
        default = cls(**fields)
    for key in settings:
        if not hasattr(default, key):
            raise InputError(
                _unknown(f"--set {key}: a {kind} config has no such field", key, list(default.to_dict()))
            )
    renamed = {cls.attribute_map.get(key, key): value for key, value in settings.items()}
    with _explained(f"cannot set {', '.join(settings)} in a {kind} config"):
        return cls(**{**fields, **renamed})


def _fields(model: str) -> dict[str, Any]:
    """What config.json says, or only the model type."""
    path = Path(model)
    if not path.is_dir():
        if path.exists() or "/" in model:
            raise InputError(
                f"{model} is not a directory; name one with a config.json, or a model type such as llama"
            )
        return {"model_type": model}
    file = path / "config.json"
    if not file.is_file():
        raise InputError(
            f"{model} has no config.json; name a directory with one, or a model type such as llama"
        )
    with _explained(f"cannot read {file}"):
        fields = json.loads(file.read_text())
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise InputError(f"{file} names no model_type: it is not the config of a transformers model")
    return fields


def _unknown(what: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return (
        f"{what}; did you mean {' or '.join(close)}?"
        if close
        else f"{what}; see the transformers documentation"
    )


def _build(config: Any) -> torch.nn.Module:
    """The model of a config on the meta device: a language model where there is one."""
    import transformers

    tasks = (transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM)
    task = next((auto for auto in tasks if type(config) in auto._model_mapping), transformers.AutoModel)
    with _explained(f"cannot build a {config.model_type} model of this config"), torch.device("meta"):
        model: torch.nn.Module = task.from_config(config, dtype=config.dtype or torch.float32)
    return model


def _token_inputs(model: Any, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Token ids for every input of a model; it is enough that they have a shape."""
    if model.main_input_name != "input_ids":
        raise InputError(
            f"{type(model).__name__} takes {model.main_input_name}: tpfx dump can plan models of tokens only"
        )
    like = torch.zeros(batch, length, dtype=torch.int64)
    return {name: like.clone() for name in model.dummy_inputs}


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Say what was being done when transformers, or the file system, refuses."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{what}: {reason}") from error
