"""Capture a model's graphs without its weights: everything here is a fake tensor.

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)          # no memory, whatever its size
    captured = capture(model)                                     # one graph, or several

The model may be on any device, meta too; its parameters are replaced by fake tensors for as long as it runs.
Code between two graphs runs eagerly, on fake tensors. What is captured is a phase: "prefill", one call in
inference; "decode", the call after it, of one token, with what the first has kept (keys, values, states); or
"train", forward and backward as one joint graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from ..errors import InputError, ModelError, TpfxError
from ..ir.annotations import Source
from ..torch_internals.dynamo import fresh
from ..torch_internals.dynamo_cache import capturing_for
from ..torch_internals.fake import FakeTensorMode
from ..torch_internals.fx import tree_map_only
from ..torch_internals.parameter_slots import slots_of
from .graph import PHASES, Captured, Phase
from .inputs import Inputs, call_of, leave_sizes_open
from .recorder import GraphRecorder
from .sources import weight_sources


def capture(
    model: torch.nn.Module,
    inputs: Inputs | None = None,
    *,
    symbolic: bool = True,
    phase: Phase = "prefill",
    device: torch.device | str = "cpu",
) -> list[Captured]:
    """The graphs of one call of a model, in order, on fake tensors.

    Args:
        model: as `plan_offline` takes it; likewise `inputs` and `symbolic`.
        phase: "prefill" and "decode" are captured in inference mode of the model; "decode" gives the graphs
            of both calls. "train" captures joint graphs, with the model in training mode.
        device: where the tensors pretend to be, which decides on the kernels in the graphs; a GPU needs a
            build of torch that knows it.

    Raises:
        ModelError: the model cannot be captured.
        InputError: no inputs, or of the wrong kind; or a decode step of a model that keeps nothing for it.
    """
    if phase not in PHASES:
        raise InputError(f"{phase} is not a phase; it is one of {', '.join(PHASES)}")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    args, kwargs = call_of(model, inputs)
    args, kwargs = tree_map_only(
        torch.Tensor, lambda value: _fake_input(value, mode, symbolic, device), (args, kwargs)
    )
    train = phase == "train"
    # Without a device there is no memory on it for what graphs make of nothing.
    around: Any = nullcontext() if torch.device(device).type == "cpu" else mode
    recorder = GraphRecorder({}, symbolic, "train" if train else "prefill", around)
    with (
        training_mode(model, train),
        _without_weights(model, mode, device) as recorder.sources,
        torch.set_grad_enabled(train),
        capturing_for(recorder.backend),
    ):
        step = torch.compile(fresh(model.forward), backend=recorder.backend)
        try:
            result = step(*args, **kwargs)
            if phase == "decode":
                named = dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | kwargs
                following = _next_call(model, named, result, mode, symbolic)
                recorder.phase = "decode"
                step(**following)
        except Exception as error:
            raise capture_error(model, error) from error
    if not recorder.captured:
        raise ModelError(f"{type(model).__name__} computes nothing with tensors: there is no graph to split")
    return recorder.captured


def _next_call(
    model: torch.nn.Module, named: Mapping[str, Any], result: Any, mode: FakeTensorMode, symbolic: bool
) -> dict[str, Any]:
    """The arguments of a decode step: one token, and what the call before has returned for it.

    Results whose names are also parameters of `forward` are what a model keeps: `past_key_values`,
    `cache_params`, `state`. An encoder's result is handed on as `encoder_outputs`.
    """
    takes = inspect.signature(model.forward).parameters
    given = dict(result) if isinstance(result, Mapping) else {}
    kept = {name: value for name, value in given.items() if name in takes and value is not None}
    tokens = "decoder_input_ids" if "decoder_input_ids" in takes else "input_ids"
    if not kept or tokens not in named:
        raise InputError(
            f"{type(model).__name__} has no decode step: its forward returns nothing that it also takes, "
            "such as past_key_values"
        )
    with mode:
        kept[tokens] = torch.zeros(named[tokens].shape[0], 1, dtype=torch.int64, device=named[tokens].device)
    if symbolic:
        leave_sizes_open(kept[tokens])
    if "encoder_outputs" in takes and given.get("encoder_last_hidden_state") is not None:
        kept["encoder_outputs"] = (given["encoder_last_hidden_state"],)
    return kept | {name: named[name] for name in ("use_cache",) if name in named}


def capture_error(model: torch.nn.Module, error: Exception) -> TpfxError:
    """Why a capture failed, in one line."""
    cause = getattr(error, "inner_exception", error)
    if isinstance(cause, TpfxError):
        return cause
    reason = next(iter(str(cause).strip().splitlines()), "")
    return ModelError(f"{type(model).__name__} cannot be captured: {type(cause).__name__}: {reason}")


# Fake tensors in the place of real ones.


@contextmanager
def training_mode(model: torch.nn.Module, train: bool) -> Iterator[None]:
    """Training mode, or not, for as long as this lasts; then each module's own mode again."""
    before = {module: module.training for module in model.modules()}
    try:
        model.train(train)
        yield
    finally:
        for module, was in before.items():
            module.training = was


@contextmanager
def _without_weights(
    model: torch.nn.Module, mode: FakeTensorMode, device: torch.device | str
) -> Iterator[dict[int, Source]]:
    """Fake parameters and buffers, tied ones tied, while this lasts; gives what each is by its id."""
    fakes: dict[int, torch.Tensor] = {}
    modules = model.modules()
    tables: list[dict[str, Any]] = [table for one in modules for table in (one._parameters, one._buffers)]
    before = [dict(table) for table in tables]
    try:
        for slot in slots_of(model):
            value = slot.value
            if id(value) not in fakes:
                fakes[id(value)] = _fake(value, mode, device)
            slot.table[slot.key] = fakes[id(value)]
        yield weight_sources(model)
    finally:
        for table, values in zip(tables, before, strict=True):
            table.update(values)


def _fake(value: torch.Tensor, mode: FakeTensorMode, device: torch.device | str) -> torch.Tensor:
    """A fake tensor like this one, a parameter where this is one."""
    with mode:
        fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    is_parameter = isinstance(value, torch.nn.Parameter)
    return torch.nn.Parameter(fake, value.requires_grad) if is_parameter else fake


def _fake_input(
    value: torch.Tensor, mode: FakeTensorMode, symbolic: bool, device: torch.device | str
) -> torch.Tensor:
    fake = _fake(value, mode, device)
    if symbolic:
        leave_sizes_open(fake)
    return fake
