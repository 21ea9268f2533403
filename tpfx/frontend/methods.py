"""Methods of a model beside `forward` that run its submodules: each is compiled at its first call.

names = method_names(model, None)      # ["decode", "encode"]
lead_through(model, names)             # model.decode(z) has graphs of its own, with the same weights

Inside of a call that is compiled, of `forward` or of another method, they are what they were: part of it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch

from ..errors import InputError
from ..torch_internals.dynamo import as_code_of
from .compiled_forward import Entry, PartialEntry
from .plain_copy import STANDS_IN


def method_names(model: torch.nn.Module, asked: Sequence[str] | None) -> list[str]:
    """The methods to compile beside `forward`.

    Args:
        model: the model.
        asked: the names that the user gives; None for every public method that runs submodules, of the
            classes that have a `forward`: what other classes bring, such as `generate`, is machinery.

    Raises:
        InputError: a name is not one of the model's methods.
    """
    if asked is None:
        return sorted(name for name in _public(model) if _runs_parts(model, name, set()))
    if isinstance(asked, str):
        raise InputError(f"methods is {asked!r}; pass a list of names, such as [{asked!r}]")
    for name in asked:
        if not isinstance(inspect.getattr_static(type(model), name, None), FunctionType):
            known = ", ".join(sorted(_public(model))) or "none"
            raise InputError(
                f"methods has {name!r}, which is no method of {type(model).__name__}; its own are: {known}"
            )
    return [name for name in asked if name != "forward"]


def lead_through(model: torch.nn.Module, names: Sequence[str]) -> None:
    """Have calls of these methods compiled; the model has an entry."""
    for name in names:
        vars(model)[name] = MethodType(_leading(getattr(type(model), name), name), model)


def _leading(original: Callable[..., Any], name: str) -> FunctionType:
    """A method that goes through the entry of the model it is called on, which a copy has of its own."""

    @functools.wraps(original)
    def method(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return original(self, *args, **kwargs)
        return _entry_for(self, name)(*args, **kwargs)

    made = as_code_of(method, inspect.unwrap(original))
    setattr(made, STANDS_IN, True)
    return made


def _entry_for(model: torch.nn.Module, name: str) -> Entry:
    entry: Entry = vars(model)["_tpfx_entry"]
    made = entry.methods.get(name)
    if made is None:
        method = MethodType(getattr(type(model), name), model)
        made = entry.methods[name] = PartialEntry(model, method, entry.session)
    return made


def _public(model: torch.nn.Module) -> Iterator[str]:
    """Public methods of the classes that have a `forward`, but those that take the place of machinery."""
    classes = type(model).__mro__[: type(model).__mro__.index(torch.nn.Module)]
    own = [one for one in classes if "forward" in vars(one)]
    machinery = [one for one in classes if one not in own]
    names = {name for one in own for name, value in vars(one).items() if isinstance(value, FunctionType)}
    for name in names:
        above = (inspect.getattr_static(one, name, None) for one in machinery)
        known = name in vars(model) or hasattr(torch.nn.Module, name)
        if not name.startswith("_") and not known and all(map(_is_empty, above)):
            yield name


def _is_empty(method: Any) -> bool:
    """Whether a class says no more of a method than that there is one."""
    if method is None:
        return True
    code = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
    return code is not None and set(code.co_names) <= {"NotImplementedError"}


# A method with one of these is a loop around the model: no graph has a backward in its midst.
_TRAINS = {"backward", "manual_backward"}


def _runs_parts(model: torch.nn.Module, name: str, seen: set[str]) -> bool:
    """Whether a method names a submodule or weight of the model, or calls a method that does."""
    method = inspect.getattr_static(type(model), name, None)
    if name in seen or not isinstance(method, FunctionType):
        return False
    seen.add(name)
    function = inspect.unwrap(method)
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        return False
    names = set(_names_in(function.__code__))
    if names & _TRAINS:
        return False
    if names & (model._modules.keys() | model._parameters.keys()):
        return True
    return any(_runs_parts(model, one, seen) for one in names if hasattr(type(model), one))


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
