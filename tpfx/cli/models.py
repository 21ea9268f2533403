"""What MODEL means on the command line: a module on the meta device, and inputs of one call.

./Llama-3.1-405B          a directory with a config.json; its weights are not read
llama                     a transformers model type, with --set hidden_size=… as often as needed
mine.models:build         a function of a Python module; it returns a model, or a model and its inputs
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..capture.inputs import Inputs
from ..errors import InputError
from .arguments import console

LENGTH = 4096  # tokens in a sequence, where a model has positions for so many


@dataclass(frozen=True)
class Built:
    """A model without weights, and inputs of one call, of which only shapes and dtypes count.

    Attributes:
        model: the module, on the meta device.
        inputs: arguments of one call.
        config: that of a transformers model.
    """

    model: torch.nn.Module
    inputs: Inputs | None
    config: Any = None


def build(
    model: str,
    settings: list[str],
    batch: int,
    length: int | None,
    *,
    labels: bool = False,
    meta: bool = True,
) -> Built:
    """The model that MODEL names.

    Args:
        model: as the user wrote it.
        settings: fields of a config to change, as KEY=VALUE.
        batch, length: of the inputs of a transformers model; None for the most of up to `LENGTH` tokens.
        labels: whether its inputs have labels, for a loss.
        meta: whether it is made without contents.

    Raises:
        InputError: there is no such model, or it cannot be built.
    """
    for option, number in (("--batch", batch), ("--length", length)):
        if number is not None and number < 1:
            raise InputError(f"{option} {number}: it must be at least 1")
    given = parse_settings(settings)
    if ":" in model:
        if given:
            raise InputError(f"--set changes a transformers config; {model} is a function")
        return _made(model, meta)
    config = read_config(model, given)
    built = of_config(config, meta)
    return Built(built, inputs_of(built, batch, _fitting(config, length), labels), config)


def _fitting(config: Any, length: int | None) -> int:
    """How many tokens a sequence has; where that is more than the model has positions for, it is said."""
    most = positions_of(config)
    if length is None:
        return min(LENGTH, most or LENGTH)
    if most is not None and length > most:
        console.print(f"--length {length}: the config has positions for {most:,} tokens")
    return length


def _made(name: str, meta: bool) -> Built:
    """What a function of a module returns."""
    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")  # as `python -m` finds modules: from the working directory
    try:
        with explained(f"cannot import {module}"):
            factory = getattr(importlib.import_module(module), attribute, None)
    finally:
        sys.path.remove("")
    if not callable(factory):
        raise InputError(f"{module} has no function {attribute!r}; name one as package.module:function")
    with explained(f"{name} failed"), torch.device("meta" if meta else "cpu"):
        made = factory()
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"{name} returned a {type(model).__name__}, not an nn.Module or (model, inputs)")
    return Built(model, inputs)


def parse_settings(settings: list[str]) -> dict[str, Any]:
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


def read_config(model: str, settings: Mapping[str, Any]) -> Any:
    """The config of a directory or of a model type, with some of its fields changed."""
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    except ImportError as missing:
        raise InputError(
            f"{model} is read with transformers, which cannot be imported ({missing}): "
            "pip install 'tpfx[transformers]'; a function, as package.module:function, needs none"
        ) from missing
    fields = _fields(model, CONFIG_MAPPING)
    kind = fields.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise InputError(
            _unknown(f"{kind} is not a transformers model type", str(kind), list(CONFIG_MAPPING))
        )
    cls = CONFIG_MAPPING[kind]
    with explained(f"the config of {model} is not valid"):
        default = cls(**fields)
    for key in settings:
        if not hasattr(default, key):
            raise InputError(
                _unknown(f"--set {key}: a {kind} config has no such field", key, list(default.to_dict()))
            )
    renamed = {cls.attribute_map.get(key, key): value for key, value in settings.items()}
    with explained(f"cannot set {', '.join(settings)} in a {kind} config"):
        return cls(**{**fields, **renamed})


def _fields(model: str, known: Collection[str]) -> dict[str, Any]:
    """What config.json says, or only the model type: a folder that is called like one is meant by a path."""
    path = Path(model)
    if model in known:
        if path.is_dir():
            console.print(f"{model} is taken as the model type; the folder is ./{model}")
        return {"model_type": model}
    if not path.is_dir():
        if path.exists() or "/" in model:
            raise InputError(
                f"{model} is not a directory; name one with a config.json, or a model type such as llama"
                f"{_of_hub(model)}"
            )
        return {"model_type": model}
    file = path / "config.json"
    if not file.is_file():
        raise InputError(
            f"{model} has no config.json; name a directory with one, or a model type such as llama"
        )
    with explained(f"cannot read {file}"):
        fields = json.loads(file.read_text())
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise InputError(
            f"{file} names no model_type, so it is not the config of a transformers model; name a directory "
            "with one, or package.module:function"
        )
    return fields


def _of_hub(model: str) -> str:
    """How to get the config of what is called like a model of the hub."""
    owner, _, name = model.partition("/")
    if "/" in name or not owner.strip(".") or not name:
        return ""
    return f"; of a model of the hub: hf download {model} config.json --local-dir {name}"


def _unknown(what: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return (
        f"{what}; did you mean {' or '.join(close)}?"
        if close
        else f"{what}; see the transformers documentation"
    )


def of_config(config: Any, meta: bool = True) -> torch.nn.Module:
    """The model of a config: of the class that it names, or else a language model where there is one."""
    import transformers

    named = [getattr(transformers, name, None) for name in getattr(config, "architectures", None) or ()]
    encodes = bool(getattr(config, "is_encoder_decoder", False))
    tasks = (
        *(() if encodes else (transformers.AutoModelForCausalLM,)),  # a decoder alone is another model
        transformers.AutoModelForSeq2SeqLM,
        transformers.AutoModelForSpeechSeq2Seq,
        transformers.AutoModelForImageClassification,
    )
    task = next((auto for auto in tasks if type(config) in auto._model_mapping), transformers.AutoModel)
    dtype = config.dtype or torch.float32
    with (
        explained(f"cannot build a {config.model_type} model of this config"),
        torch.device("meta" if meta else "cpu"),
    ):
        cls = next((one for one in named if one is not None), None)
        model: torch.nn.Module = (
            task.from_config(config, dtype=dtype) if cls is None else cls._from_config(config, dtype=dtype)
        )
    return model


def inputs_of(model: Any, batch: int, length: int, labels: bool) -> dict[str, torch.Tensor]:
    """Token ids, or images, for every input of a model; it is enough that they have a shape.

    Raises:
        InputError: the model takes something else.
    """
    takes = inspect.signature(model.forward).parameters
    if model.main_input_name == "pixel_values":
        return {"pixel_values": _images(model, batch)}
    if model.main_input_name == "input_features" and (sound := _sound(model.config, batch)) is not None:
        return {"input_features": sound, "decoder_input_ids": torch.zeros(batch, length, dtype=torch.int64)}
    if model.main_input_name != "input_ids":
        raise InputError(
            f"{type(model).__name__} takes {model.main_input_name}: of transformers models tpfx knows inputs "
            "of tokens and images; write a function that returns (model, inputs), and name it as "
            "package.module:function"
        )
    like = torch.zeros(batch, length, dtype=torch.int64)
    names = [*model.dummy_inputs, *(["labels"] if labels and "labels" in takes else [])]
    return {name: like.clone() for name in names}


def _images(model: Any, batch: int) -> torch.Tensor:
    config = model.config
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.zeros(batch, getattr(config, "num_channels", 3), height, width)


def _sound(config: Any, batch: int) -> torch.Tensor | None:
    """A spectrogram as long as an encoder's positions, of which each takes two frames; None where its sizes
    are not in the config."""
    bins, positions = (getattr(config, name, None) for name in ("num_mel_bins", "max_source_positions"))
    return None if bins is None or positions is None else torch.zeros(batch, bins, 2 * positions)


def positions_of(config: Any) -> int | None:
    """How many tokens the positions of a model are for, if its config says it."""
    names = ("max_position_embeddings", "max_target_positions")
    found = (getattr(config, name, None) for name in names)
    return next((count for count in found if isinstance(count, int) and count > 0), None)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Say what was being done when transformers, the file system or a user's code refuses."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        raise InputError(f"{what}: {type(error).__name__}: {reason}") from error
