"""A hook that runs before every step of every optimizer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from .effects import Effect, Undo

# What `step` of every optimizer is wrapped in; it walks over the hooks.
_STEP = next(one for one in Optimizer.profile_hook_step.__code__.co_consts if isinstance(one, CodeType))


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
