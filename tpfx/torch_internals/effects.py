"""Changes to torch that hold for the whole process: each has a name, is made, and can be undone.

undo = Effect("a hook before every step", install).install()
undo()

Nothing here changes torch when it is imported. `tpfx.frontend.effects` says when which are made.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import CodeType
from typing import Any, Protocol

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

# What `step` of every optimizer is wrapped in; it walks over the hooks.
_STEP = next(one for one in Optimizer.profile_hook_step.__code__.co_consts if isinstance(one, CodeType))

# Undoes a change and says whether it could: if not, it is asked again later.
Undo = Callable[[], bool]


@dataclass(frozen=True)
class Effect:
    """A change to torch, with a name for it; `install` makes the change."""

    name: str
    install: Callable[[], Undo]


class _Table(Protocol):
    """Where functions have keys, as a module's names or an op's kernels."""

    def get(self, key: Any, /) -> Any:
        """The function, or None."""

    def __setitem__(self, key: Any, function: Any, /) -> None: ...

    def __delitem__(self, key: Any, /) -> None: ...


def replace_in(
    table: _Table,
    key: Any,
    change: Callable[[Callable[..., Any]], Callable[..., Any]],
    absent: Callable[..., Any] | None = None,
) -> Undo:
    """Put `change(f)` in the place of the function `f` that a table has under a key.

    Undone, `f` is back, unless another function stands there by then: that one stays, and wherever it calls
    what it has found here it calls `f`.

    Args:
        table: as of a module's names, or of an op's kernels.
        key: into the table.
        change: makes the new function of the old one.
        absent: what stands for `f` where the table has none; then none is there afterwards.
    """
    before = table.get(key)
    original: Any = absent if before is None else before
    now = [change(original)]

    @functools.wraps(original)
    def ours(*args: Any, **kwargs: Any) -> Any:
        return now[0](*args, **kwargs)

    def undo() -> bool:
        now[0] = original
        if table.get(key) is ours:
            if before is None:
                del table[key]
            else:
                table[key] = before
        return True

    table[key] = ours
    return undo


def replace_method(
    owner: type, name: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Undo:
    """Put `change(f)` in the place of the function `f` that a class has by this name, as `replace_in`."""
    return replace_in(_Methods(owner), name, change)


class _Methods:
    """What a class defines itself, as a table that can be changed."""

    def __init__(self, owner: type) -> None:
        self._owner = owner

    def get(self, name: str) -> Any:
        return vars(self._owner).get(name)

    def __setitem__(self, name: str, method: Any) -> None:
        setattr(self._owner, name, method)

    def __delitem__(self, name: str) -> None:
        delattr(self._owner, name)


def replace_kernel(
    op: Any,
    key: Any,
    change: Callable[[Callable[..., Any]], Callable[..., Any]],
    absent: Callable[..., Any] | None = None,
) -> Undo:
    """Replace what Python has for an op and a dispatch key, as `replace_in`."""
    undo = replace_in(op.py_kernels, key, change, absent)
    op._dispatch_cache.clear()

    def undo_and_forget() -> bool:
        done = undo()
        op._dispatch_cache.clear()
        return done

    return undo_and_forget


def before_every_step(hook: Callable[..., None]) -> Effect:
    """`hook(optimizer, args, kwargs)` is called before every step of any optimizer.

    It is not taken out while a step runs: torch would find its table of hooks changed in the midst of
    walking over it. Until then a hook that does nothing stands there.
    """

    def install() -> Undo:
        handle = register_optimizer_step_pre_hook(hook)

        def undo() -> bool:
            hooks = handle.hooks_dict_ref()
            if hooks is not None and handle.id in hooks:
                if step_runs():
                    hooks[handle.id] = _do_nothing
                    return False
                handle.remove()
            return True

        return undo

    return Effect(f"{hook.__name__} before every step", install)


# What is called with a module to export, trace or script it, by whatever public name.
_EXPORTERS = (
    ("torch.export._trace", "_export"),
    ("torch.jit._trace", "_trace_impl"),
    ("torch.jit._trace", "trace_module"),
    ("torch.jit", "trace_module"),
    ("torch.jit._script", "_script_impl"),
)


def not_replicated(is_split: Callable[[Any], bool]) -> Effect:
    """`nn.DataParallel` of a module that is split calls it, as without GPUs, instead of copying it to each.

    transformers' Trainer wraps every model so where its process sees several GPUs.
    """

    def change(original: Callable[..., None]) -> Callable[..., None]:
        def init(
            self: Any, module: Any, device_ids: Any = None, output_device: Any = None, dim: int = 0
        ) -> None:
            if not is_split(module):
                original(self, module, device_ids, output_device, dim)
                return
            torch.nn.Module.__init__(self)
            self.module, self.device_ids, self.dim = module, [], dim

        return init

    def install() -> Undo:
        return replace_method(torch.nn.DataParallel, "__init__", change)

    return Effect("DataParallel of split modules", install)


def before_export(plain: Callable[[Any], Any]) -> Effect:
    """What is exported, traced or scripted is `plain(model)`; `plain` gives any other argument as it is."""

    def change(export: Callable[..., Any]) -> Callable[..., Any]:
        def of_plain(*args: Any, **kwargs: Any) -> Any:
            return export(*map(plain, args), **{name: plain(value) for name, value in kwargs.items()})

        return of_plain

    def install() -> Undo:
        undo = [replace_in(vars(import_module(module)), name, change) for module, name in _EXPORTERS]
        return lambda: all([each() for each in undo])

    return Effect("plain models are exported", install)


def step_runs() -> bool:
    """Whether some thread is inside of an optimizer's step."""
    for innermost in sys._current_frames().values():
        frame: Any = innermost
        while frame is not None:
            if frame.f_code is _STEP:
                return True
            frame = frame.f_back
    return False


def _do_nothing(*_: Any) -> None:
    """Stands in a hook's place."""
