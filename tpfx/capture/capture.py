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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch

from ..errors import InputError, ModelError, TpfxError
from ..ir.annotations import Source
from ..torch_internals.batch_guards import BATCH_EFFECTS, CAN_OPEN_BATCHES, open_batches
from ..torch_internals.dynamo import NOT_CAPTURED, Settings, fresh, twin
from ..torch_internals.dynamo_cache import capturing_for, compile_with
from ..torch_internals.fake import QUICK_SIZES, FakeTensor, FakeTensorMode
from ..torch_internals.fx import tree_leaves, tree_map_only
from ..torch_internals.parameter_slots import slots_of, with_hooks
from .decompositions import FAST_PATH_EFFECTS
from .graph import PHASES, Captured, Phase
from .inputs import Inputs, call_of, is_one_token, leave_sizes_open
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
    args, kwargs = call_of(model, inputs)
    with calls_on_fakes(model, symbolic=symbolic, train=phase == "train", device=device) as calls:
        args, kwargs, result = calls.call(args, kwargs)
        if phase == "decode":
            named = dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | kwargs
            calls.recorder.phase = "decode"
            calls.call((), _next_call(model, named, result, calls.mode))
    return calls.graphs()


class Calls:
    """Calls of a model, and of parts of it, on fake tensors; their graphs are kept: those of `compile`.

    Attributes:
        model: the model.
        recorder: what keeps the graphs.
        mode: of the fake tensors.
    """

    def __init__(
        self, model: torch.nn.Module, symbolic: bool, phase: Phase, device: torch.device | str
    ) -> None:
        self.model, self.mode = model, FakeTensorMode(allow_non_fake_inputs=True)
        # Without a device there is no memory on it for what graphs make of nothing.
        around: Any = nullcontext() if torch.device(device).type == "cpu" else self.mode
        self.recorder = GraphRecorder({}, symbolic, phase, around)
        self._symbolic, self._device = symbolic, device
        self._compiled: dict[int, Compiled] = {}

    def call(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        part: torch.nn.Module | None = None,
        any_batch: bool = False,
    ) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """Capture one call.

        Args:
            args, kwargs: its arguments; fake tensors among them are results of earlier calls.
            part: the submodule that is called; None for the model.
            any_batch: whether a batch of 1 stays open, as in the first call of `generate`.

        Returns:
            The arguments, as fake tensors, and the result.

        Raises:
            ModelError: it cannot be captured.
        """
        args, named = tree_map_only(torch.Tensor, self._fake_input, (args, dict(kwargs)))
        leaves = (leaf for leaf in tree_leaves((args, named)) if isinstance(leaf, torch.Tensor))
        is_step = self._symbolic and any(map(is_one_token, leaves))
        try:
            return args, named, self._of(part).call(is_step, any_batch and self._symbolic, args, named)
        except Exception as error:
            raise capture_error(self.model, error) from error

    def graphs(self) -> list[Captured]:
        """The graphs of all calls, in order.

        Raises:
            ModelError: there are none.
        """
        if not self.recorder.captured:
            name = type(self.model).__name__
            raise ModelError(f"{name} computes nothing with tensors: there is no graph to split")
        return self.recorder.captured

    def _of(self, part: torch.nn.Module | None) -> Compiled:
        found = self._compiled.get(id(part))
        if found is None:
            forward = self.model.forward if part is None else MethodType(with_hooks, part)
            found = self._compiled[id(part)] = Compiled(forward, self.recorder)
        return found

    def _fake_input(self, value: torch.Tensor) -> torch.Tensor:
        if isinstance(value, FakeTensor) and value.fake_mode is self.mode:
            return value
        fake = _fake(value, self.mode, self._device)
        if self._symbolic:
            leave_sizes_open(fake)
        return fake


class Compiled:
    """A forward whose graphs are recorded: steps of one token apart, for any number of rows, if possible."""

    def __init__(self, forward: Callable[..., Any], recorder: GraphRecorder) -> None:
        self._recorder, forward = recorder, fresh(forward)
        dynamic = None if recorder.symbolic else False
        self._compiled = torch.compile(forward, backend=recorder.backend, dynamic=dynamic)
        self._step = compile_with(twin(forward), recorder.backend, True, _all_guards)

    def call(self, is_step: bool, any_batch: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the forward returns."""
        if is_step and CAN_OPEN_BATCHES:
            try:
                with open_batches(), self._recorder.for_any_batch():
                    return self._step(*args, **kwargs)
            except NOT_CAPTURED:
                pass  # it is captured for this batch, or says what is wrong
        with open_batches() if any_batch and CAN_OPEN_BATCHES else nullcontext():
            return self._compiled(*args, **kwargs)


def _all_guards(entries: Sequence[Any]) -> list[bool]:
    return [True] * len(entries)


@contextmanager
def calls_on_fakes(
    model: torch.nn.Module, *, symbolic: bool, train: bool, device: torch.device | str
) -> Iterator[Calls]:
    """What captures calls of a model while this lasts, in inference or in training; see `capture`."""
    calls = Calls(model, symbolic, "train" if train else "prefill", device)
    with (
        ExitStack() as effects,
        training_mode(model, train),
        _without_weights(model, calls.mode, device) as calls.recorder.sources,
        torch.set_grad_enabled(train),
        capturing_for(calls.recorder.backend),
        Settings(model),
    ):
        for effect in (*FAST_PATH_EFFECTS, *BATCH_EFFECTS, *QUICK_SIZES):
            effects.callback(effect.install())
        yield calls


def _next_call(
    model: torch.nn.Module, named: Mapping[str, Any], result: Any, mode: FakeTensorMode
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
    kept[tokens] = torch.zeros(named[tokens].shape[0], 1, dtype=torch.int64)
    if "encoder_outputs" in takes and given.get("encoder_last_hidden_state") is not None:
        kept["encoder_outputs"] = (given["encoder_last_hidden_state"],)
    return kept | {name: named[name] for name in ("use_cache",) if name in named}


def capture_error(model: torch.nn.Module, error: Exception) -> TpfxError:
    """Why a capture failed, in one line."""
    cause = getattr(error, "inner_exception", error)
    if isinstance(cause, TpfxError):
        return cause
    reason = next(iter(str(cause).strip().splitlines()), "")
    return ModelError(
        f"{type(model).__name__} cannot be captured: {type(cause).__name__}: {reason}; see whether it runs "
        "whole with such inputs"
    )


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
    slots, modules = list(slots_of(model)), list(model.modules())
    before = [slot.value for slot in slots]
    tables: list[dict[str, Any]] = [table for one in modules for table in (one._parameters, one._buffers)]
    unset = [{key for key, value in table.items() if value is None} for table in tables]
    try:
        for slot, value in zip(slots, before, strict=True):
            if id(value) not in fakes:
                fakes[id(value)] = _fake(value, mode, device)
            slot.table[slot.key] = fakes[id(value)]
        yield weight_sources(model)
    finally:
        for slot, value in zip(slots, before, strict=True):
            slot.table[slot.key] = value
        for table, keys in zip(tables, unset, strict=True):  # what a call has made is fake
            table.update(dict.fromkeys(keys))


def _fake(value: torch.Tensor, mode: FakeTensorMode, device: torch.device | str) -> torch.Tensor:
    """A fake tensor like this one, a parameter where this is one."""
    with mode:
        fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    if isinstance(value, torch.nn.Parameter):
        fake = torch.nn.Parameter(fake, value.requires_grad)
    for name, noted in vars(value).items():  # the state of a packed weight, say
        if name not in getattr(value, "own_attributes", ("_is_param",)):
            setattr(fake, name, noted)
    return fake
