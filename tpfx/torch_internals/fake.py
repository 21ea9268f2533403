"""Fake tensors, what ops raise on them, and their sizes that vary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from typing import Any

import sympy
import torch
from torch import _decomp
from torch._subclasses import fake_tensor as _fakes
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily as unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, free_unbacked_symbols
from torch.utils._sympy.functions import FloorDiv, Mod

from .effects import Effect, Undo, replace_kernel, replace_method

# What an op raises on fake tensors where its shapes depend on values, or it was never told about fakes.
UNKNOWN_TO_FAKES = (
    _fakes.DataDependentOutputException,
    _fakes.DynamicOutputShapeException,
    _fakes.UnsupportedOperatorException,
)


def fakes_of_known_sizes() -> FakeTensorMode:
    """Fake tensors whose sizes are numbers, but those that only values tell."""
    return FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)


def tell_shapes(op: Any, like: Callable[..., Any]) -> Effect:
    """Fake tensors get through an op that this release of torch can only run on real ones.

    Args:
        op: an overload; of one that knows what it returns nothing is changed.
        like: what it returns, given tensors without memory.
    """

    def install() -> Undo:
        if op.has_kernel_for_dispatch_key(_META):
            return lambda: True
        library = torch.library.Library(op.namespace, "IMPL", "Meta")
        library.impl(op, like)
        op.py_impl(_META)(like)
        _decomp.meta_table[op] = like

        def undo() -> bool:
            library._destroy()
            del op.py_kernels[_META], _decomp.meta_table[op]
            op._dispatch_cache.clear()
            return True

        return undo

    return Effect(f"shapes of {op}", install)


_META: Any = torch._C.DispatchKey.Meta

# Within `quick_sizes`: of each trace, what came of two of its sizes, as they are known now.
_worked_out: ContextVar[dict[ShapeEnv, dict[Any, Any]] | None] = ContextVar("worked_out", default=None)


@contextmanager
def quick_sizes() -> Iterator[None]:
    """Capture without working out again and again what torch asks of each fake tensor's sizes and strides.

    For captures with sizes that vary: without it a fifth of their time. `QUICK_SIZES` must be in place.
    """
    token = _worked_out.set({} if _worked_out.get() is None else _worked_out.get())
    try:
        yield
    finally:
        _worked_out.reset(token)


def _once(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A method of a size that does not work out the same of the same two sizes again.

    It tells nothing of what a graph relies on: that is noted where a comparison is answered.
    """

    def change(work_out: Callable[..., Any]) -> Callable[..., Any]:
        def once(size: Any, other: Any) -> Any:
            known = _worked_out.get()
            if known is None or get_proxy_mode() is not None or not (_is_plain(size) and _is_plain(other)):
                return work_out(size, other)
            found = known.setdefault(size.shape_env, {})
            key = name, size.expr, size._hint, size.pytype, other.expr, other._hint, other.pytype
            if key in found:  # another object, by which a trace knows who made it
                return copy(found[key])
            found[key] = made = work_out(size, other)
            return made

        return once

    return change


def _is_plain(size: Any) -> bool:
    """Whether a size is an expression of one trace, with a number to go by or none."""
    return (
        type(size) is SymNode and size.shape_env is not None and type(size._hint) in (int, bool, type(None))
    )


def _linear_by_shape(linear: Callable[..., Any]) -> Callable[..., Any]:
    """`linear` of fakes that computes its shape, not the fakes of views, a product and a view again.

    Those are what AOTAutograd traces, of which this takes nothing: its tensors are no fakes by themselves.
    """

    def by_shape(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        if _worked_out.get() is None or not _is_known_linear(x, weight, bias):
            return linear(x, weight, bias)
        return x.new_empty((*x.shape[:-1], weight.shape[0]))

    return by_shape


def _is_known_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether nothing is to be said of a product but its shape: no error, no gradient."""
    operands = (x, weight) if bias is None else (x, weight, bias)
    return (
        type(x) is FakeTensor
        and get_proxy_mode() is None
        and not torch.is_grad_enabled()
        and x.dim() > 1
        and weight.dim() == 2
        and all(isinstance(size, int) for size in (x.shape[-1], *weight.shape))
        and x.shape[-1] == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
        and all((one.dtype, one.device) == (x.dtype, x.device) for one in operands)
    )


def _linear_in_cpp(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    return _LINEAR._op_dk(_COMPOSITE, x, weight, bias)


_LINEAR: Any = torch.ops.aten.linear.default
_COMPOSITE: Any = torch._C.DispatchKey.CompositeImplicitAutograd
_WORKED_OUT_ONCE = ("add", "sub", "mul", "eq", "ne", "ge", "gt", "le", "lt", "sym_max", "sym_min")


def _of_sizes(name: str) -> Effect:
    return Effect(f"{name} of sizes", lambda: replace_method(SymNode, f"_{name}", _once(name)))


# They change what is done within `quick_sizes` alone.
QUICK_SIZES = (
    *map(_of_sizes, _WORKED_OUT_ONCE),
    Effect("linear", lambda: replace_kernel(_LINEAR, _COMPOSITE, _linear_by_shape, _linear_in_cpp)),
)

Symbols = Mapping[sympy.Symbol, sympy.Symbol]


def expression(extent: Any) -> Any:
    """A size: a number, or a sympy expression of the sizes that vary, as it is known now."""
    return extent.node.expr if isinstance(extent, torch.SymInt) else extent


def with_exact_divisions(extent: Any, size: Any) -> Any:
    """An expression of sizes in which divisions known to leave no rest are fractions: 2 * (s // 2) is s.

    Args:
        extent: a size of the same trace, which knows them.
        size: the expression, or a number.
    """
    divisions = size.atoms(FloorDiv) if isinstance(size, sympy.Expr) and not size.is_Symbol else ()
    if not divisions or not isinstance(extent, torch.SymInt):
        return size
    env = extent.node.shape_env
    exact = {env.replace(rest) for rest in env.divisible}
    return size.xreplace({one: one.args[0] / one.args[1] for one in divisions if Mod(*one.args) in exact})


def equate_sizes(values: Iterable[Any]) -> None:
    """Have sizes of inputs be one that a guard on products says are equal: of s2 * s3 == s0 * s3, s2 is s0.

    A view of another input's batch gives such a guard, which torch does not solve; it asks for what is solved
    here beside it.
    """
    given = [one for value in values for one in (value, *getattr(value, "shape", ()))]
    open_sizes = [one for one in given if isinstance(one, torch.SymInt) and not free_unbacked_symbols(one)]
    for env in {one.node.shape_env for one in open_sizes}:
        symbols = [one.node.expr for one in open_sizes if one.node.shape_env is env]
        for guard in list(env.guards):
            pair = _equal_sizes(env.replace(guard.expr)) if isinstance(guard.expr, sympy.Eq) else None
            if pair is not None and pair[0] in symbols and pair[1] in symbols:
                first, second = sorted(pair, key=symbols.index)
                env._set_replacement(second, first, "products of sizes are equal")


def _equal_sizes(equation: Any) -> tuple[Any, Any] | None:
    """The two symbols that an equation of products says are equal, if that is what it says."""
    if not isinstance(equation, sympy.Eq):
        return None
    left, right = (equation.lhs / equation.rhs).as_numer_denom()
    return (left, right) if left.is_Symbol and right.is_Symbol else None


def renamed(value: Any, symbols: Symbols) -> Any:
    """A fake value like another one, but of other sizes that vary; itself, where it is of none of these."""
    if isinstance(value, (tuple, list)):
        return type(value)(renamed(one, symbols) for one in value)
    if isinstance(value, torch.SymInt):
        return _renamed_size(value, symbols)
    if not isinstance(value, FakeTensor) or not any(_is_of(one, symbols) for one in _extents(value)):
        return value
    sizes, strides = ([_renamed_size(one, symbols) for one in many] for many in (value.shape, value.stride()))
    with value.fake_mode:
        return torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)


def _extents(value: torch.Tensor) -> Iterable[Any]:
    return (*value.shape, *value.stride())


def _is_of(extent: Any, symbols: Symbols) -> bool:
    return isinstance(extent, torch.SymInt) and not symbols.keys().isdisjoint(extent.node.expr.free_symbols)


def _renamed_size(extent: Any, symbols: Symbols) -> Any:
    if not _is_of(extent, symbols):
        return extent
    node = extent.node
    return node.shape_env.create_symintnode(node.expr.xreplace(dict(symbols)), hint=node.hint)


def assumptions(values: Iterable[Any]) -> Callable[[], bool]:
    """Take down what is known of the sizes that vary in fake values; tells later whether it is still all."""
    sizes = (one for value in values for one in (value, *getattr(value, "shape", ())))
    known = {one.node.shape_env for one in sizes if isinstance(one, torch.SymInt)}
    before = [(env, _noted(env)) for env in known]
    return lambda: all(_noted(env) == noted for env, noted in before)


def _noted(env: Any) -> tuple[Any, ...]:
    return len(env.guards), dict(env.replacements), dict(env.var_to_range), env.num_deferred_runtime_asserts
