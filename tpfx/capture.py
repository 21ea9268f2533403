"""Capture a model's graphs without its weights: everything here is a fake tensor.

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)          # no memory, whatever its size
    print(plan_offline(model, 8))                                 # the parallel graph, as text

The model may be on any device, meta too; its parameters are replaced by fake tensors for as long as it runs.
Code between two graphs runs eagerly, on fake tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FunctionType, MethodType
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils._pytree import tree_map_only

from .annotations import Source
from .errors import InputError, ModelError, TpfxError
from .layout import Shards
from .pipeline import Parallel, parallelize
from .program import shards_of
from .topology import Topology
from .torch_compiler import (
    FakeTensorMode,
    capturing_again,
    mark_dynamic_sizes,
    unset_fake_temporarily,
)
from .trace import boxed, settle_sources, trace

Inputs = tuple[Any, ...] | Mapping[str, Any]


@dataclass
class Captured:
    """One graph of a model, as AOTAutograd gives it.

    Attributes:
        module: the ATen graph, with fake tensors under `val`.
        sources: what each of the graph's inputs is, in order.
    """

    module: GraphModule
    sources: list[Source]


def plan_offline(
    model: torch.nn.Module,
    devices: int,
    inputs: Inputs | None = None,
    topology: Topology | None = None,
    *,
    symbolic: bool = True,
) -> Parallel:
    """Plan the forward pass of a model without its weights, and without any device.

    Args:
        model: a module on any device, "meta" included; it is left as it was.
        devices: how many devices to split it over.
        inputs: arguments (a tuple) or keyword arguments (a dict) of one call; only dtypes and shapes
            count. A transformers model brings its own.
        topology: what messages and arithmetic cost.
        symbolic: whether batch and length are left open in the plan.

    Returns:
        The parallel graph; the one with the most ops where the model makes several.

    Raises:
        ModelError: the model cannot be captured.
        InputError: no inputs, or of the wrong kind.

    >>> print(plan_offline(model, 8))
    """
    plans = plan_graphs(capture(model, inputs, symbolic=symbolic), devices, topology)
    return max(plans, key=lambda parallel: len(parallel.graph.nodes))


def plan_graphs(
    captured: Sequence[Captured], devices: int, topology: Topology | None = None
) -> list[Parallel]:
    """Plan graphs of one model, in the order of capture: a parameter keeps its layout in later ones."""
    if devices < 1:
        raise InputError(f"cannot split a model over {devices} devices; name at least 1")
    pinned: dict[str, Shards] = {}
    plans = []
    for one in captured:
        sources = [replace(source, pinned=pinned.get(source.name)) for source in one.sources]
        with unset_fake_temporarily():
            parallel = parallelize(one.module.graph, sources, devices, topology)
        plans.append(parallel)
        for node, source in zip(parallel.graph.find_nodes(op="placeholder"), sources, strict=True):
            if source.kind in ("parameter", "buffer"):
                pinned.setdefault(source.name, shards_of(node))
    return plans


def capture(model: torch.nn.Module, inputs: Inputs | None = None, *, symbolic: bool = True) -> list[Captured]:
    """The graphs of one call of a model, in order, on fake CPU tensors and in inference mode of the model.

    Args and errors are those of `plan_offline`.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    args, kwargs = call_of(model, inputs)
    args, kwargs = tree_map_only(
        torch.Tensor, lambda value: _fake_input(value, mode, symbolic), (args, kwargs)
    )
    captured: list[Captured] = []
    with _without_weights(model, mode) as sources, torch.no_grad(), capturing_again():
        backend = _recorder(sources, captured)
        try:
            torch.compile(fresh(model.forward), backend=backend)(*args, **kwargs)
        except Exception as error:
            raise explained(model, error) from error
    if not captured:
        raise ModelError(f"{type(model).__name__} computes nothing with tensors: there is no graph to split")
    return captured


def explained(model: torch.nn.Module, error: Exception) -> TpfxError:
    """Why a capture failed, in one line."""
    cause = getattr(error, "inner_exception", error)
    if isinstance(cause, TpfxError):
        return cause
    reason = next(iter(str(cause).strip().splitlines()), "")
    return ModelError(f"{type(model).__name__} cannot be captured: {type(cause).__name__}: {reason}")


def _recorder(sources: Mapping[int, Source], captured: list[Captured]) -> Callable[..., Any]:
    """A backend of Dynamo that keeps the graphs, and runs them as they are; `sources` by ids of tensors."""

    def backend(module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        placeholders = module.graph.find_nodes(op="placeholder")
        known = [
            sources.get(id(value), Source("input", node.name))
            for node, value in zip(placeholders, example_inputs, strict=True)
        ]

        recorder = _Recorder(known, captured)
        return trace(module, recorder, [node.meta["example_value"] for node in placeholders])

    return backend


@dataclass
class _Recorder:
    """Keeps the graphs that AOTAutograd makes of one of Dynamo's, and runs them as they are."""

    sources: list[Source]
    captured: list[Captured]

    def inference(self, lowered: GraphModule) -> Callable[..., Any]:
        """Keep a graph without gradients."""
        self.captured.append(Captured(lowered, settle_sources(lowered, self.sources)))
        return boxed(lambda args: lowered(*args))

    def partition(self, joint: GraphModule, results: int, **_: Any) -> tuple[GraphModule, GraphModule]:
        """Not reached: gradients are off."""
        raise TpfxError("a graph with gradients was captured where none is wanted")

    def forward(self, lowered: GraphModule) -> Callable[..., Any]:
        """Keep a graph."""
        return self.inference(lowered)

    def backward(self, lowered: GraphModule) -> Callable[..., Any]:
        """Not reached either."""
        return self.inference(lowered)


def fresh(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same method with code of its own: what Dynamo remembers of a capture goes when the capture does."""
    function = getattr(forward, "__func__", None)
    if not isinstance(function, FunctionType):
        return forward
    copy = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return MethodType(copy, forward.__self__)  # type: ignore[attr-defined]


# Fake tensors in the place of real ones.


@contextmanager
def _without_weights(model: torch.nn.Module, mode: FakeTensorMode) -> Iterator[dict[int, Source]]:
    """Fake parameters and buffers, tied ones tied, while this lasts; gives what each is by its id."""
    made: dict[int, torch.Tensor] = {}
    sources: dict[int, Source] = {}
    before: list[tuple[dict[str, Any], dict[str, Any]]] = []
    training = [module for module in model.modules() if module.training]
    try:
        for prefix, module in model.named_modules():
            for table, kind in ((module._parameters, "parameter"), (module._buffers, "buffer")):
                before.append((table, dict(table)))
                for name, value in table.items():
                    if value is None:
                        continue
                    if id(value) not in made:
                        fake = made[id(value)] = _fake(value, mode)
                        sources[id(fake)] = Source(kind, f"{prefix}.{name}" if prefix else name)
                    table[name] = made[id(value)]
        model.eval()
        yield sources
    finally:
        for table, values in before:
            table.update(values)
        for module in training:
            module.training = True


def _fake(value: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """A fake CPU tensor like this one, a parameter where this is one."""
    with mode:
        fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
    is_parameter = isinstance(value, torch.nn.Parameter)
    return torch.nn.Parameter(fake, value.requires_grad) if is_parameter else fake


def call_of(model: torch.nn.Module, inputs: Inputs | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments and keyword arguments of one call."""
    given = getattr(model, "dummy_inputs", None) if inputs is None else inputs
    if isinstance(given, Mapping):
        return (), dict(given)
    if isinstance(given, (tuple, list)):
        return tuple(given), {}
    what = "has no inputs of its own" if given is None else f"cannot be called with a {type(given).__name__}"
    raise InputError(
        f"{type(model).__name__} {what}; pass a tuple of arguments or a dict of keyword arguments"
    )


def _fake_input(value: torch.Tensor, mode: FakeTensorMode, symbolic: bool) -> torch.Tensor:
    fake = _fake(value, mode)
    if symbolic:
        leave_sizes_open(fake)
    return fake


def leave_sizes_open(value: torch.Tensor) -> None:
    """Say that the sizes of an input that usually vary do so: a batch, and the length of text."""
    if value.dim():
        text = value.dim() == 2 or (value.dim() == 3 and value.is_floating_point())
        mark_dynamic_sizes(value, {0, 1} if text else {0})
