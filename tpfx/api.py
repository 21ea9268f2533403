"""`compile` and `report`: what most users need."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from .backend import Planned, Session
from .errors import AlreadyCompiledError, InputError, ModelError
from .mesh import DeviceSpec, Mesh, parse_devices
from .report import Report
from .runtime import Runtime
from .tensor import ShardedTensor, gather_tree
from .topology import Topology

M = TypeVar("M", bound=torch.nn.Module)
_SESSION = "_tpfx_session"


def compile(
    model: M,
    devices: int | Sequence[DeviceSpec] | None = None,
    *,
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | None = None,
    topology: Topology | None = None,
    timeout: float = 300.0,
) -> M:
    """Split a model over several devices, in place.

    Args:
        model: any module with parameters. It is changed in place, and returned.
        devices: one device for each rank, repeats allowed; an int for so many; None for all visible GPUs.
        example_inputs: arguments (a tuple) or keyword arguments (a dict) of one call. With them the weights are
            divided at once; a transformers model brings its own; otherwise at the first call.
        topology: what messages and arithmetic cost, for the chooser.
        timeout: seconds that a rank waits for the others before `CollectiveTimeout`.

    Returns:
        The same model. Its outputs are plain tensors on the first device; parameters are `ShardedTensor`s.

    Raises:
        DeviceError: the devices do not make a mesh.
        AlreadyCompiledError: the model has been compiled before.
        ModelError: the model has no parameters, or is no module.

    >>> model = tpfx.compile(model, ["cuda:0", "cuda:1"])
    """
    _check(model)
    mesh = Mesh(parse_devices(devices))
    session = Session(mesh, Runtime(mesh, timeout), topology or Topology())
    _wrap_parameters(model, mesh)
    forward = model.forward
    setattr(model, _SESSION, session)
    given = _example(model) if example_inputs is None else example_inputs
    if given is not None:
        _plan(model, forward, session, given)
    model.forward = _entry(forward, session)  # type: ignore[method-assign]
    return model


def report(model: torch.nn.Module) -> Report:
    """What was done to a compiled model: bytes on each device, messages, graphs, ops that run whole.

    Raises:
        ModelError: the model is not compiled.
    """
    session = getattr(model, _SESSION, None)
    if session is None:
        raise ModelError("this model is not compiled; call tpfx.compile(model, devices) first")
    return Report.of(model, session)


def full_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The unsharded state dict, with the original names; tensors on the first device."""
    whole: dict[str, torch.Tensor] = gather_tree({name: value.detach() for name, value in model.state_dict().items()})
    return whole


def _check(model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"tpfx.compile takes an nn.Module, got {type(model).__name__}")
    if getattr(model, _SESSION, None) is not None:
        mesh: Mesh = getattr(model, _SESSION).mesh
        names = [str(device) for device in mesh.devices]
        raise AlreadyCompiledError(f"this model is compiled already, for {names}; load it anew to split it otherwise")
    if next(model.parameters(), None) is None:
        raise ModelError(f"{type(model).__name__} has no parameters: there is nothing to split")


def _wrap_parameters(model: torch.nn.Module, mesh: Mesh) -> None:
    """Put a ShardedTensor in the place of every parameter and buffer; tied ones stay tied."""
    made: dict[int, torch.Tensor] = {}
    for prefix, module in model.named_modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is None or isinstance(value, ShardedTensor):
                    continue
                if id(value) not in made:
                    made[id(value)] = _wrapped(value, f"{prefix}.{name}" if prefix else name, mesh)
                table[name] = made[id(value)]  # type: ignore[assignment]


def _wrapped(value: torch.Tensor, name: str, mesh: Mesh) -> torch.Tensor:
    sharded: torch.Tensor = ShardedTensor(mesh, value, whole=value.detach())
    if isinstance(value, torch.nn.Parameter):
        sharded = torch.nn.Parameter(sharded, value.requires_grad)
    sharded.qualified_name = name  # type: ignore[attr-defined]
    return sharded


def _example(model: torch.nn.Module) -> Mapping[str, Any] | None:
    """The inputs that a transformers model has of its own."""
    inputs = getattr(model, "dummy_inputs", None)
    return inputs if isinstance(inputs, dict) and hasattr(model, "config") else None


def _compiled(forward: Callable[..., Any], backend: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(forward, backend=backend, options={"guard_filter_fn": _keep_guards})


def _keep_guards(entries: Sequence[Any]) -> list[bool]:
    """Guards on parameters can go: they belong to tpfx, which never changes what a graph relies on."""
    return [not isinstance(getattr(entry, "value", None), ShardedTensor) or entry.value.qualified_name is None for entry in entries]


def _plan(model: torch.nn.Module, forward: Callable[..., Any], session: Session, given: Any) -> None:
    args, kwargs = ((), dict(given)) if isinstance(given, Mapping) else (tuple(given), {})
    _mark_dynamic((args, kwargs))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            _compiled(forward, session.plan)(*args, **kwargs)
    except Planned:
        pass
    finally:
        model.train(training)


def _entry(forward: Callable[..., Any], session: Session) -> Callable[..., Any]:
    compiled = _compiled(forward, session.compile)

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        _mark_dynamic((args, kwargs))
        return gather_tree(compiled(*args, **kwargs))

    return call


def _mark_dynamic(inputs: Any) -> None:
    """Say of batch and length that they will vary, so that one graph serves all."""
    for leaf in _tensors(inputs):
        if type(leaf) is torch.Tensor and leaf.dim() and not hasattr(leaf, "_dynamo_weak_dynamic_indices"):
            dims = (0, 1) if leaf.dim() == 2 or (leaf.dim() == 3 and leaf.is_floating_point()) else (0,)
            leaf._dynamo_weak_dynamic_indices = set(dims)  # type: ignore[attr-defined]


def _tensors(inputs: Any) -> list[torch.Tensor]:
    args, kwargs = inputs
    return [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]


__all__ = ["InputError", "compile", "full_state_dict", "report"]
