"""Sizes of 1 that stay open while a graph is captured, and what the guards say of other batches."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch._subclasses import fake_impls
from torch.fx.experimental import _config as _size_settings
from torch.fx.experimental import symbolic_shapes

from .effects import Effect, replace_in, replace_kernel

_sizes: Any = symbolic_shapes
_SQUEEZE: Any = torch.ops.aten.squeeze.dims
_RESHAPE: Any = torch.ops.aten.reshape.default
_VIEW: Any = torch.ops.aten.view.default
_ALIAS: Any = torch.ops.aten.alias.default
_inferred: Any = torch._prims_common.infer_size
_view_strides: Any = fake_impls._compute_stride
_COMPOSITE: Any = torch._C.DispatchKey.CompositeImplicitAutograd
_META: Any = torch._C.DispatchKey.Meta

# Whether `open_batches` may be used: only where this torch's `squeeze` and `reshape` ask as it can answer.
CAN_OPEN_BATCHES = (
    symbolic_shapes.guard_or_false.__name__ in inspect.unwrap(torch._refs.squeeze).__code__.co_names
    and decomposition_table.get(_SQUEEZE) is torch._refs.squeeze
    and _META in _SQUEEZE.py_kernels
    and _COMPOSITE not in _RESHAPE.py_kernels
)


@contextmanager
def open_batches() -> Iterator[None]:
    """Leave marked sizes open also where they are 1 now, of which Dynamo makes a constant otherwise.

    Where torch's own code asks whether a size is 1 and either answer will do, nothing is concluded from its
    being so now; where the model asks, or the answer matters, the graph is specialised by a guard as ever.
    `BATCH_EFFECTS` must be in place: without them `squeeze` would keep a dimension that has become 1.
    """
    if _size_settings.backed_size_oblivious:  # within another, or in a torch whose threads have it in common
        yield
        return
    _size_settings.backed_size_oblivious = True
    try:
        yield
    finally:
        _size_settings.backed_size_oblivious = False


def _asking(squeeze: Callable[..., Any]) -> Callable[..., Any]:
    """`squeeze` that asks by guards which of its dimensions have size 1 where batches are open.

    Torch lets it off: it goes on as if a dimension of unknown size were not 1, and so would the graph.
    """

    def asking(x: torch.Tensor, dim: Any = None) -> Any:
        if dim is not None and _size_settings.backed_size_oblivious:
            for one in (dim,) if isinstance(dim, int) else dim:
                if -x.dim() <= one < x.dim():
                    bool(x.shape[one] == 1)  # from here on the answer is known
        return squeeze(x, dim)

    return asking


def _quick(reshape: Callable[..., Any]) -> Callable[..., Any]:
    """`reshape` that asks nothing where a tensor has those sizes, as of transposed heads of one token, or
    where it is a view whatever they are.

    In C++ it asks which sizes are 1, lest their strides hinder.
    """

    def quick(x: torch.Tensor, shape: Sequence[Any]) -> Any:
        if not _size_settings.backed_size_oblivious:
            return reshape(x, shape)
        if len(shape) == x.dim() and all(map(_sizes.statically_known_true, map(operator.eq, x.shape, shape))):
            return _ALIAS(x)
        whole = _inferred(shape, x.numel())
        is_view = x.dim() and _view_strides(x.shape, x.stride(), whole, size_oblivious=True) is not None
        return _VIEW(x, whole) if is_view else reshape(x, shape)

    return quick


def _reshape_in_cpp(x: torch.Tensor, shape: Sequence[Any]) -> Any:
    return _RESHAPE._op_dk(_COMPOSITE, x, shape)


# They change what is said of open batches alone.
BATCH_EFFECTS = (
    Effect("squeeze on fakes", lambda: replace_in(decomposition_table, _SQUEEZE, _asking)),
    Effect("squeeze on meta", lambda: replace_kernel(_SQUEEZE, _META, _asking)),
    Effect("reshape", lambda: replace_kernel(_RESHAPE, _COMPOSITE, _quick, _reshape_in_cpp)),
)


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
