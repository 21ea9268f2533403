"""How a result lies in memory, as it was captured: for AOTAutograd, which makes views of inputs by it.

strides = Strides(fake, placeholders)      # (6*s0, 6, 1), offset 4, of a view of x: f32[b, s0, 6]
stride, offset = strides(args)             # (12, 6, 1), 4
restride(tensor, stride, offset)           # the same numbers, lying so
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import sympy
import torch
from torch.fx import Node

from ..errors import TpfxError

_FUNCTIONS = {
    "FloorDiv": operator.floordiv,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "Max": max,
    "Min": min,
}


class Strides:
    """The strides and the offset of a captured tensor, as a function of a graph's arguments.

    Args:
        value: the fake tensor.
        placeholders: the graph's inputs, among whose values and sizes are the symbols.

    Raises:
        TpfxError: a symbol is not among them.
    """

    def __init__(self, value: torch.Tensor, placeholders: Sequence[Node]) -> None:
        wanted = [_expression(extent) for extent in (*value.stride(), value.storage_offset())]
        symbols = sorted(set().union(*(one.free_symbols for one in wanted)), key=str)
        known = _sources(placeholders)
        unknown = [str(symbol) for symbol in symbols if symbol not in known]
        if unknown:
            raise TpfxError(
                f"a result is a view of an input with strides {tuple(value.stride())}, and {unknown[0]} is "
                "known only when the graph runs; return a copy of it, with .clone()"
            )
        self._sources = [known[symbol] for symbol in symbols]
        self._compute = sympy.lambdify(symbols, wanted, modules=[_FUNCTIONS, "math"])

    def __call__(self, args: Sequence[Any]) -> tuple[tuple[int, ...], int]:
        """The strides and the offset, for a call with these arguments."""
        *stride, offset = self._compute(*(source(args) for source in self._sources))
        return tuple(stride), offset


def _expression(extent: Any) -> Any:
    return extent.node.expr if isinstance(extent, torch.SymInt) else sympy.Integer(extent)


def _sources(placeholders: Sequence[Node]) -> dict[Any, Callable[[Sequence[Any]], int]]:
    """Where each symbol can be read: it is an argument, or a size of one."""
    found: dict[Any, Callable[[Sequence[Any]], int]] = {}
    for at, node in enumerate(placeholders):
        value = node.meta["val"]
        if isinstance(value, torch.SymInt):
            found[_expression(value)] = partial(_number, at)
        elif isinstance(value, torch.Tensor):
            for dim, extent in enumerate(value.shape):
                found.setdefault(_expression(extent), partial(_size, at, dim))
    return found


def _number(at: int, args: Sequence[Any]) -> int:
    return int(args[at])


def _size(at: int, dim: int, args: Sequence[Any]) -> int:
    return int(args[at].shape[dim])
