"""Sizes of 1 that stay open while a graph is captured, and what the guards say of other batches."""

from __future__ import annotations

import functools
import inspect
import operator
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.fx.experimental import _config as _size_settings
from torch.fx.experimental import symbolic_shapes

_sizes: Any = symbolic_shapes
_ask = symbolic_shapes.guard_or_false
_SQUEEZE = inspect.unwrap(torch._refs.squeeze).__code__
_RESHAPE: Any = torch.ops.aten.reshape.default
_ALIAS: Any = torch.ops.aten.alias.default
_COMPOSITE: Any = torch._C.DispatchKey.CompositeImplicitAutograd

# Whether `open_batches` may be used: only where this torch's `squeeze` and `reshape` ask as it can answer.
CAN_OPEN_BATCHES = _ask.__name__ in _SQUEEZE.co_names and _COMPOSITE not in _RESHAPE.py_kernels


@contextmanager
def open_batches() -> Iterator[None]:
    """Leave marked sizes open also where they are 1 now, of which Dynamo makes a constant otherwise.

    Where torch's own code asks whether a size is 1 and either answer will do, nothing is concluded from its
    being so now; where the model asks, or the answer matters, the graph is specialised by a guard as ever.
    Torch lets `squeeze` off: it would keep a dimension that has become 1. Here that is a guard, too. And a
    `reshape` to the sizes that a tensor has, as of transposed heads of one token, asks nothing.
    """
    _listen()
    if _size_settings.backed_size_oblivious:  # within another, or in a torch whose threads have it in common
        yield
        return
    _size_settings.backed_size_oblivious = True
    try:
        yield
    finally:
        _size_settings.backed_size_oblivious = False


@functools.cache
def _listen() -> None:
    """From now on hear what torch asks; what is said differs where batches are open alone."""
    _sizes.guard_or_false = _guard_or_false
    _RESHAPE.py_impl(_COMPOSITE)(_reshape)


def _guard_or_false(condition: Any) -> bool:
    """What torch's code asks where "no" will do if the answer is not known; of `squeeze`, the answer."""
    caller: Any = sys._getframe(1)
    squeezes = _SQUEEZE in (caller.f_code, caller.f_back.f_code)  # or an expression in it
    return bool(condition) if squeezes and _size_settings.backed_size_oblivious else _ask(condition)


def _reshape(x: torch.Tensor, shape: Sequence[Any]) -> torch.Tensor:
    """In C++ it asks which sizes are 1, lest their strides hinder."""
    same = len(shape) == x.dim() and all(map(_sizes.statically_known_true, map(operator.eq, x.shape, shape)))
    alias = same and _size_settings.backed_size_oblivious
    result: torch.Tensor = _ALIAS(x) if alias else _RESHAPE._op_dk(_COMPOSITE, x, shape)
    return result


def serves_any_batch(values: Iterable[Any]) -> bool:
    """Whether a graph with these fake inputs does for any number of rows: none of its guards minds it.

    Rows are the first dimension of inputs, of all alike, where it is open.
    """
    extents: Iterator[Any] = (size for value in values for size in getattr(value, "shape", ()))
    known = {extent.node.shape_env for extent in extents if isinstance(extent, torch.SymInt)}
    return all(_guards_hold(shapes, rows) for shapes in known for rows in (1, 2, 3))


def _guards_hold(shapes: Any, rows: int) -> bool:
    """Whether all that was assumed of sizes would be so for so many rows."""
    sizes = {
        symbol: rows if any(_is_first_size(source) for source in shapes.var_to_sources[symbol]) else value
        for symbol, value in shapes.backed_var_to_val.items()
    }
    return all(guard.expr.xreplace(sizes) for guard in shapes.guards)


def _is_first_size(source: Any) -> bool:
    return getattr(source, "idx", None) == 0 and source.prop.name == "SIZE"
