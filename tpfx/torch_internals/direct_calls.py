"""Calls of code that Dynamo has compiled, past its wrapper and its hook on frames, if all of its guards hold.

call = DirectCalls(compiled)          # of `torch.compile(method, fullgraph=True)`
found = call(args, kwargs)            # NOT_DIRECT: call `compiled` itself, which looks further, or compiles
call.note()                           # it has

Dynamo asks the guards of each graph, in C++, from a hook on every frame, inside of a wrapper in Python that
takes as long again. Here the same guards, those of the graph that was used last, are asked of the same
arguments, and its code is called. Where the wrapper would do anything else, it is left to it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list, get_eval_frame_callback
from torch._dynamo import eval_frame
from torch._guards import TracingContext
from torch.fx import _symbolic_trace

NOT_DIRECT: Any = object()

_USUAL = eval_frame.DynamoStance()


class DirectCalls:
    """Calls the code that Dynamo has compiled last of one method.

    Args:
        compiled: what `torch.compile` has made of the method: one graph, which does not break, so that Dynamo
            has nothing to capture on the way.
    """

    def __init__(self, compiled: Callable[..., Any]) -> None:
        method: Any = compiled._torchdynamo_orig_callable  # type: ignore[attr-defined]
        self._function: FunctionType = getattr(method, "__func__", method)
        self._owner = (method.__self__,) if isinstance(method, MethodType) else ()
        self._arguments = _arguments_of(self._function)
        self._cells = list(
            zip(self._function.__code__.co_freevars, self._function.__closure__ or (), strict=True)
        )
        # The guards of a graph, what asks them, and the code: one object, as several threads may call.
        self._known: tuple[Any, Callable[[Mapping[str, Any]], bool], Callable[..., Any]] | None = None

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the method returns; `NOT_DIRECT`, before anything has run, where Dynamo must be asked."""
        known = self._known
        if known is None or not _is_usual():
            return NOT_DIRECT
        guards, hold, run = known
        if guards.cache_entry is None:  # Dynamo has let go of the graph, or something it relies on has gone
            self._known = None
            return NOT_DIRECT
        values = self._arguments(*self._owner, *args, **kwargs)
        for name, cell in self._cells:
            values[name] = cell.cell_contents
        return run(*self._owner, *args, **kwargs) if hold(values) else NOT_DIRECT

    def note(self) -> None:
        """Dynamo has been asked: what it has used may be called from now on."""
        own = self._function
        entry = next(iter(_debug_get_cache_entry_list(own.__code__)), None)  # that used last comes first
        if entry is None or not _has_same_arguments(entry.code, own.__code__):
            self._known = None
            return
        run = FunctionType(entry.code, own.__globals__, own.__name__, own.__defaults__, own.__closure__)
        run.__kwdefaults__ = own.__kwdefaults__
        self._known = entry.guard_manager, entry.guard_manager.root.check, run


def _is_usual() -> bool:
    """Whether Dynamo's wrapper would do no more than look for a graph."""
    return (
        (eval_frame._stance is _USUAL or eval_frame._stance == _USUAL)
        and get_eval_frame_callback() is None
        and TracingContext.try_get() is None
        and not _symbolic_trace.is_fx_symbolic_tracing()
        and not torch.compiler.is_exporting()
        and not torch._C._is_tracing()
    )


_SHAPE = ("co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_freevars")


def _has_same_arguments(code: CodeType, original: CodeType) -> bool:
    flags = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
    count = len(_names_of(original))
    return (
        all(getattr(code, name) == getattr(original, name) for name in _SHAPE)
        and code.co_flags & flags == original.co_flags & flags
        and code.co_varnames[:count] == original.co_varnames[:count]
    )


def _names_of(code: CodeType) -> tuple[str, ...]:
    """The names of all arguments: positional ones, those that must be named, `*args` and `**kwargs`."""
    starred = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + starred]


def _arguments_of(function: FunctionType) -> Callable[..., dict[str, Any]]:
    """A function that takes the same arguments, and returns them by name: what Dynamo's guards look at."""
    code = function.__code__
    names = list(_names_of(code))
    starred = names[code.co_argcount + code.co_kwonlyargcount :]
    several = starred.pop(0) if code.co_flags & inspect.CO_VARARGS else ""
    given = [*names[: code.co_argcount]]
    if code.co_posonlyargcount:
        given.insert(code.co_posonlyargcount, "/")
    if several or code.co_kwonlyargcount:
        given.append(f"*{several}")
    given += names[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    given += [f"**{name}" for name in starred]
    space: dict[str, Any] = {}
    exec(f"def arguments({', '.join(given)}): return locals()", space)
    made: FunctionType = space["arguments"]
    made.__defaults__, made.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return made
