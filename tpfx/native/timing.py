"""Have what runs a rank's graph note when each op starts, and no longer.

forward = timed(forward, gpu=None)      # a program is changed, of other code there is another
forward(*inputs)
names, runs = forward.take_times()
forward = untimed(forward)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule

from ..kernels.stamps import Timed, TimedCode, TimedWhole
from .rank_program import RankProgram


def timed(forward: Callable[..., Any], gpu: torch.device | None = None) -> RankProgram | Timed:
    """What does the same as `forward`, a program, a graph module's code or compiled code, and notes times.

    Args:
        forward: what runs a rank's graph.
        gpu: where it runs, if on one; each op is waited for there.
    """
    if isinstance(forward, RankProgram):
        forward.time(True, gpu)
        return forward
    module = getattr(forward, "__self__", None)
    return TimedCode(module, gpu) if isinstance(module, GraphModule) else TimedWhole(forward, gpu)


def untimed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """What `timed` was given."""
    if isinstance(forward, RankProgram):
        forward.time(False)
        return forward
    assert isinstance(forward, Timed)
    return forward.plain
