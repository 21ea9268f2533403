"""What tpfx puts in the attributes of modules: it can tell it, take it out again, and make a copy without.

lead_parts(model, call)  # model.encoder(x), outside of calls of the model, is call(model.encoder, (x,), {})
plain_copy(model)        # its weights whole, its forward its own; others, as they are
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

import torch

from ..errors import ModelError
from ..sharded_tensor.model_weights import load_into_place, plain_weight
from ..sharded_tensor.state_tensor import give_addresses
from ..sharded_tensor.tensor import ShardedTensor
from ..torch_internals.aot import in_transform
from ..torch_internals.backward_pass import saved_by_others
from ..torch_internals.dynamo import as_code_of
from ..torch_internals.module_changes import remove_state_hooks
from ..torch_internals.parameter_slots import (
    CALLED_INSTEAD,
    copy_noted,
    leaves_of,
    places_of,
    slots_of,
    with_hooks,
    with_inside,
)

STANDS_IN = "_tpfx_stands_in"  # a function has it that leads through the compiled forward of its module
_LEADS = "_tpfx_leads"  # a function has it that was put there by `lead_parts`

_Call = Callable[[torch.nn.Module, tuple[Any, ...], Mapping[str, Any]], Any]


class StandIn:
    """What stands in the place of a method of a model, which is its `forward`."""

    model: torch.nn.Module
    forward: Callable[..., Any]


def stand_ins(module: torch.nn.Module) -> Iterator[tuple[str, StandIn]]:
    """The attributes of a module that hold a stand-in, or a method of one, or what leads there."""
    for name, value in list(vars(module).items()):
        found = getattr(value.func, "__self__", None) if isinstance(value, functools.partial) else value
        if getattr(value, STANDS_IN, False):
            found = vars(module).get("_tpfx_entry")
        if isinstance(found, StandIn):
            yield name, found


def strip(module: torch.nn.Module) -> None:
    """Take stand-ins out of a module, and what was there before back in."""
    for name, found in list(stand_ins(module)):
        value = vars(module).pop(name)
        before = found.forward if value is found and not name.startswith("_tpfx") else None
        function = getattr(before, "__func__", None)
        if before is not None and function is not getattr(type(module), name, None):
            vars(module)[name] = before if function is None else MethodType(function, module)
    remove_state_hooks(module, (load_into_place, give_addresses))
    leave_part(module)


def lead_parts(model: torch.nn.Module, call: _Call) -> None:
    """Lead calls of those submodules that have weights through `call`, but of what is compiled by itself."""
    lead = _leading(call)
    for module in _parts(model):
        if vars(module).get(CALLED_INSTEAD) is None and "_tpfx_entry" not in vars(module):
            vars(module)[CALLED_INSTEAD] = MethodType(lead, module)


def leave_part(module: torch.nn.Module) -> None:
    """Take out of a module what `lead_parts` has put there."""
    if hasattr(vars(module).get(CALLED_INSTEAD), _LEADS):
        del vars(module)[CALLED_INSTEAD]


def _parts(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    for module in model.modules():
        weights = (one for values in (module.parameters(), module.buffers()) for one in values)
        if module is not model and next(weights, None) is not None:
            yield module


def _leading(call: _Call) -> FunctionType:
    def called(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        # A checkpoint's recomputation, amid a backward, must save what its forward did inside of the model.
        if torch.compiler.is_compiling() or in_transform() or saved_by_others():
            return with_hooks(self, *args, **kwargs)
        return call(self, args, kwargs)

    made = as_code_of(called, with_hooks)
    setattr(made, _LEADS, True)
    return made


def is_split(model: Any) -> bool:
    """Whether something is a module with split weights, or with a part that is compiled."""
    return isinstance(model, torch.nn.Module) and (
        any(isinstance(slot.value, ShardedTensor) for slot in slots_of(model))
        or any(True for module in model.modules() for _ in stand_ins(module))
    )


def _copied(weight: torch.Tensor) -> torch.Tensor:
    return plain_weight(weight, None, copy=True) if isinstance(weight, ShardedTensor) else weight.clone()


def plain_copy(model: Any) -> Any:
    """A copy with whole weights, where anything is split; of a compiled forward, that of such a copy.

    Raises:
        ModelError: the model cannot be copied.
    """
    if isinstance(model, StandIn):
        return plain_copy(model.model).forward
    if not is_split(model):
        return model
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, _ in stand_ins(module):
            memo[id(vars(module)[name])] = vars(module)[name]
    for slot in places_of(model):
        if (
            any(isinstance(one, ShardedTensor) for one in leaves_of(slot.value))
            and id(slot.value) not in memo
        ):
            memo[id(slot.value)] = with_inside(slot.value, _copied)
    try:
        for slot in places_of(model):
            copy_noted(memo.get(id(slot.value)), slot.value, memo)
        made = copy.deepcopy(model, memo)
    except Exception as problem:
        name = type(model).__name__
        raise ModelError(
            f"{name} is split, and cannot be copied as a plain model ({problem}); call "
            "tpfx.unshard(model) first"
        ) from problem
    for module in made.modules():
        strip(module)
    return made
