"""What a call is given: brought to the first device, sizes left open, described where a model cannot take it.

args, kwargs = brought_to(device, args, kwargs)
is_step = leave_sizes_open(list(tensors_in((args, kwargs))))
raise unfit(model, forward, args, kwargs, problem) from None
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ..capture.inputs import is_one_token
from ..capture.inputs import leave_sizes_open as leave_open
from ..errors import InputError
from ..sharded_tensor.storage import is_distributed
from ..sharded_tensor.tensor import ShardedTensor
from ..torch_internals.dynamo import FailedOp, place_of, reason_of


def lies_on(device: torch.device, tensor: torch.Tensor) -> bool:
    """Whether a tensor may be used there as it is; a number may lie on the CPU."""
    if tensor.__class__ is not torch.Tensor and is_distributed(tensor.__class__):
        return False  # nowhere alone
    return tensor.device == device or (tensor.dim() == 0 and tensor.device.type == "cpu")


def brought_to(device: torch.device, value: Any) -> Any:
    """The same with every tensor on a device; containers are made anew where something in them is moved."""
    if isinstance(value, torch.Tensor):
        return value if lies_on(device, value) or value.is_meta else value.to(device)
    if isinstance(value, (list, tuple)):
        items = [brought_to(device, item) for item in value]
        if all(one is other for one, other in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        made = {key: brought_to(device, item) for key, item in value.items()}
        if all(made[key] is item for key, item in value.items()):
            return value
        changed = copy.copy(value)
        changed.update(made)
        return changed
    return value


def require_contents(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse tensors without contents, and those that are spread over processes.

    Raises:
        InputError: an argument, or something in it, is on the meta device, or a DTensor.
    """
    for where, tensor in _named(forward, args, kwargs):
        if tensor.is_meta:
            raise InputError(f"{where} is on meta, without contents: pass a tensor on any other device")
        if is_distributed(type(tensor)):
            raise InputError(
                f"{where} is a {type(tensor).__name__}, which lies on a mesh of its own; a split model takes "
                f"plain tensors: pass {where}.full_tensor()"
            )


def unfit(
    name: str,
    forward: Callable[..., Any],
    given: tuple[tuple[Any, ...], Mapping[str, Any]],
    worked: str | None,
    problem: FailedOp,
) -> InputError:
    """What to raise where an op cannot take what a model is given: arguments, reason, place, what worked."""
    said = f"{name} cannot be called with {described(forward, *given)}: {reason_of(problem)}"
    place = place_of(problem)
    return InputError(
        said + (f", in {place}" if place else "") + (f". A call that worked had {worked}" if worked else "")
    )


def described(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The tensors of a call: `ids int64[2, 7], mask bool[2, 7]`."""
    tensors = _named(forward, args, kwargs)
    return ", ".join(
        f"{where} {str(one.dtype).removeprefix('torch.')}{list(one.shape)}" for where, one in tensors
    )


def _named(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a call, by the names of arguments and their place in these."""
    names = list(inspect.signature(forward).parameters)
    for at, value in enumerate(args):
        yield from _inside(value, names[at] if at < len(names) else f"argument {at}")
    for name, value in kwargs.items():
        yield from _inside(value, name)


def _inside(value: Any, where: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield where, value
    elif isinstance(value, (list, tuple)):
        for at, item in enumerate(value):
            yield from _inside(item, f"{where}[{at}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(item, f"{where}[{key!r}]")


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def leave_sizes_open(inputs: Sequence[torch.Tensor]) -> bool:
    """Say of batch and length that they will vary, so that one graph serves all.

    Returns:
        Whether some text has one token a row: sizes of 1 but the batch are constants.
    """
    is_step = False
    for leaf in inputs:
        plain = type(leaf) is torch.Tensor
        if not leaf.dim() or not (plain or _is_made_eagerly(leaf)):
            continue
        is_step |= plain and is_one_token(leaf)
        leave_open(leaf)
    return is_step


def _is_made_eagerly(value: torch.Tensor) -> bool:
    """Whether code between two calls has made a split tensor of another; graphs mark what they return.

    Of a view Dynamo knows the sizes by those of its base.
    """
    return isinstance(value, ShardedTensor) and value.qualified_name is None
