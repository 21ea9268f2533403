"""The calls of a transformers model that its `generate` makes, without anything of the model running.

first_of_generate(model, {"input_ids": ids})    # the keyword arguments of the first
capture_generation(model, None)                 # its graph, and that of the step of one token after it

A plan that `compile` is to follow in `generate` is made of these: the graph of a call with the text alone is
another one, which `generate` never runs.
"""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..capture.capture import Calls, calls_on_fakes, capture
from ..capture.graph import Captured, Phase
from ..capture.inputs import Inputs, call_of
from ..errors import InputError
from ..torch_internals.parameter_slots import CALLED_INSTEAD

log = logging.getLogger("tpfx")

# What is called instead of the model or its encoder: gets that, and keyword arguments.
_Instead = Callable[[torch.nn.Module, dict[str, Any]], Any]


def capture_generation(
    model: torch.nn.Module,
    inputs: Inputs | None,
    *,
    symbolic: bool = True,
    phase: Phase | None = None,
    device: torch.device | str = "cpu",
) -> list[Captured]:
    """The graphs of what `generate` runs; or of one call, of a model whose `generate` is not known.

    Args:
        model: as `plan_offline` takes it; likewise `symbolic`.
        inputs: what `generate` is given: a text; None for the model's own.
        phase: as `capture` takes it; None for "decode" where the model generates, and "prefill" where not.
        device: as `capture` takes it.

    Raises:
        ModelError: the model cannot be captured.
        InputError: no inputs, or of the wrong kind; or a decode step of a model that keeps nothing for it.
    """
    _, given = call_of(model, inputs)
    if phase != "train" and _is_known(model, given):
        with calls_on_fakes(model, symbolic=symbolic, train=False, device=device) as calls:
            if _capture(calls, given, phase != "prefill", device):
                return calls.graphs()
    if phase is None and _writes(model):  # by a generate of its own
        try:
            return capture(model, inputs, symbolic=symbolic, phase="decode", device=device)
        except InputError as problem:
            log.debug("%s is planned with one call: %s", type(model).__name__, problem)
    return capture(model, inputs, symbolic=symbolic, phase=phase or "prefill", device=device)


def _capture(calls: Calls, given: Mapping[str, Any], steps: bool, device: torch.device | str) -> bool:
    """Capture what a `generate` calls, its encoder too, up to the first call of the model or with the steps
    that have graphs of their own; whether all came."""
    encodes, seen = _encodes(calls.model), 0
    wanted = 1 + steps * (1 + encodes)  # a decoder begins with one token: of its first step the past is a 1

    def record(module: torch.nn.Module, kwargs: dict[str, Any]) -> Any:
        nonlocal seen
        is_model = module is calls.model
        calls.recorder.phase = "decode" if is_model and seen else "prefill"
        part, first = None if is_model else module, is_model and not seen and not encodes
        _, _, result = calls.call((), kwargs, part, any_batch=first)
        seen += is_model
        if seen == wanted:
            raise _Enough
        return _with_numbers(result)

    return _generate(calls.model, given, record, wanted, torch.device(device).type)


def _with_numbers(result: Any) -> Any:
    """A model's result with logits from which the next token can be chosen: all are 0."""
    if isinstance(result, Mapping) and isinstance(logits := result.get("logits"), torch.Tensor):
        changed: Any = copy.copy(result)
        changed["logits"] = torch.zeros((), dtype=logits.dtype).expand(logits.shape)
        return changed
    return result


def first_of_generate(model: torch.nn.Module, inputs: Inputs) -> dict[str, Any] | None:
    """The call of a transformers model that its `generate` makes first; nothing of the model runs.

    Args:
        model: the model.
        inputs: what `generate` is given: a text.

    Returns:
        Its keyword arguments; None where `generate` calls an encoder or other parts, or would keep a cache of
        a fixed size, which is that of one call, or cannot take these inputs.
    """
    given = dict(inputs) if isinstance(inputs, Mapping) else {}
    if not _is_known(model, given) or _encodes(model):
        return None
    calls: list[dict[str, Any]] = []

    def end(_: torch.nn.Module, kwargs: dict[str, Any]) -> Any:
        calls.append(kwargs)
        raise _Enough

    return calls[0] if _generate(model, given, end, 1) else None


# Ways to generate that begin with a call of the model with the text; others need more models or code.
_ORDINARY = ("greedy_search", "sample", "beam_search", "beam_sample")


def _is_known(model: torch.nn.Module, given: Mapping[str, Any]) -> bool:
    """Whether a model writes text by transformers' own `generate`, which calls it and its encoder alone."""
    settings = getattr(model, "generation_config", None)
    generate = getattr(type(model), "generate", None)
    can = getattr(model, "can_generate", bool)
    own = getattr(generate, "__module__", "") == "transformers.generation.utils"
    if not own or not can() or not isinstance(given.get("input_ids"), torch.Tensor):
        return False
    fixed = getattr(settings, "cache_implementation", None) is not None
    return not fixed and _mode_of(settings) in _ORDINARY and not vars(model).get(CALLED_INSTEAD)


def _writes(model: torch.nn.Module) -> bool:
    """Whether a model says of itself that it generates."""
    can = getattr(model, "can_generate", bool)
    return bool(can())


def _encodes(model: torch.nn.Module) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", True))


def _mode_of(settings: Any) -> str:
    mode = getattr(settings, "get_generation_mode", None)
    return "" if mode is None else str(mode().value)


class _Enough(Exception):
    """Ends what leads to a call."""


def _generate(
    model: torch.nn.Module,
    given: Mapping[str, Any],
    instead: _Instead,
    tokens: int,
    device_type: str | None = None,
) -> bool:
    """Run `generate` of a model with something else called in its place, and that of its encoder.

    Args:
        model: the model.
        given: a text, and what belongs to it.
        instead: what is called; it raises `_Enough` where the rest of `generate` is not wanted.
        tokens: how many are generated.
        device_type: where the model seems to be, if its weights are not.

    Returns:
        Whether that was raised.
    """
    named = {name: value for name, value in given.items() if not name.startswith("decoder_")}
    if "attention_mask" in inspect.signature(model.forward).parameters:
        named["attention_mask"] = torch.ones_like(given["input_ids"])  # as tokenizers give it
    settings = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    if _encodes(model) and getattr(model.generation_config, "decoder_start_token_id", None) is None:
        settings["decoder_start_token_id"] = 0  # any will do: nothing runs
    try:
        with _stand_in(model, instead, device_type) as stand_in, _quiet("transformers"):
            stand_in.generate(**named, **settings)  # type: ignore[operator]
    except _Enough:
        return True
    except Exception as problem:
        log.debug("%s cannot generate from inputs of its own: %s", type(model).__name__, problem)
    return False


@contextmanager
def _stand_in(
    model: torch.nn.Module, instead: _Instead, device_type: str | None
) -> Iterator[torch.nn.Module]:
    """A model that has the same parts, but of which something else is called, and of its encoder."""
    made = copy.copy(model)
    if device_type is not None:  # its weights are not there, and where they seem to be there may be no device
        here = "cpu" if device_type == "cpu" else "meta"
        first = torch.nn.Parameter(torch.empty(0, device=here), requires_grad=False)
        vars(made)["_parameters"] = {"first": first, **model._parameters}
    encoder = made.get_encoder() if _encodes(model) else None  # type: ignore[operator]
    vars(made)[CALLED_INSTEAD] = lambda **kwargs: instead(model, kwargs)
    before = None if encoder is None else vars(encoder).get(CALLED_INSTEAD)
    if encoder is not None:
        vars(encoder)[CALLED_INSTEAD] = lambda **kwargs: instead(encoder, kwargs)
    try:
        yield made
    finally:
        if before is not None:
            vars(encoder)[CALLED_INSTEAD] = before
        elif encoder is not None:
            del vars(encoder)[CALLED_INSTEAD]


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """A library's warnings of a call that nobody has made are not shown, nor taken for shown; it draws no
    random number."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        getattr(getattr(logger, "warning_once", None), "cache_clear", int)()
