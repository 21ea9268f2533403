"""The private names of torch's compiler that tpfx uses; `tests/test_torch_compiler.py` says what is
expected of each."""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch._dynamo import trace_rules
from torch._dynamo.exc import BackendCompilerFailed as BackendCompilerFailed
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._functorch import aot_autograd as _aot
from torch._functorch import partitioners as _partitioners
from torch._guards import TracingContext, tracing
from torch._subclasses import fake_tensor as _fakes
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily as unset_fake_temporarily
from torch.fx.experimental import _config as _size_settings
from torch.fx.experimental import symbolic_shapes
from torch.optim import optimizer as _optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import is_traceable_wrapper_subclass as is_traceable_wrapper_subclass

from .torch_private import linear_of_onednn

__all__ = [
    "CAN_OPEN_BATCHES",
    "NOT_CAPTURED",
    "UNKNOWN_TO_FAKES",
    "BackendCompilerFailed",
    "FakeTensor",
    "FakeTensorMode",
    "Settings",
    "aliased_outputs",
    "allow_foreach",
    "aot_module_simplified",
    "capturing_again",
    "compile_by_inductor",
    "dynamic_sizes",
    "forget_erased",
    "fresh",
    "is_traceable_wrapper_subclass",
    "linear_for_inductor",
    "make_wrapper_subclass",
    "mark_dynamic_sizes",
    "min_cut_rematerialization_partition",
    "open_batches",
    "overload_of",
    "serves_any_batch",
    "set_data",
    "skip_frames",
    "twin",
    "unset_fake_temporarily",
    "without_torch_function",
]

_serials = itertools.count()
_sizes: Any = symbolic_shapes
_ask = symbolic_shapes.guard_or_false
_SQUEEZE = inspect.unwrap(torch._refs.squeeze).__code__
_RESHAPE: Any = torch.ops.aten.reshape.default
_ALIAS: Any = torch.ops.aten.alias.default
_COMPOSITE: Any = torch._C.DispatchKey.CompositeImplicitAutograd

# Whether `open_batches` may be used: only where this torch's `squeeze` and `reshape` ask as it can answer.
CAN_OPEN_BATCHES = _ask.__name__ in _SQUEEZE.co_names and _COMPOSITE not in _RESHAPE.py_kernels

# What a call of a function that shall be one graph raises, before anything has run, where it cannot be.
NOT_CAPTURED = (TorchDynamoException, FailOnRecompileLimitHit)

# What an op raises on fake tensors where its shapes depend on values, or it was never told about fakes.
UNKNOWN_TO_FAKES = (
    _fakes.DataDependentOutputException,
    _fakes.DynamicOutputShapeException,
    _fakes.UnsupportedOperatorException,
)

# AOTAutograd's compile function; its protocol of compilers is narrower than what it takes.
aot_module_simplified: Any = _aot.aot_module_simplified

# Parts a joint graph in forward and backward, saving the least memory between them.
min_cut_rematerialization_partition: Any = _partitioners.min_cut_rematerialization_partition

# A tensor of a subclass, without memory: `(cls, shape, strides=, dtype=, device=, requires_grad=)`.
make_wrapper_subclass: Any = torch.Tensor._make_wrapper_subclass

# As a class's `__torch_function__`: its ops go straight to `__torch_dispatch__`.
without_torch_function: Any = torch._C._disabled_torch_function_impl

# `tensor.data = other`, which a subclass may have overridden: `other`'s sizes, dtype and memory.
set_data: Any = vars(torch._C.TensorBase)["data"].__set__


def aliased_outputs() -> frozenset[int]:
    """Which results of the forward graph that AOTAutograd now has compiled stand for views of an input, or of
    another result: it makes the view itself, with their sizes, strides and offset."""
    context = TracingContext.try_get()
    known = None if context is None else context.fw_metadata
    if known is None:
        return frozenset()
    first = known.num_mutated_inp_runtime_indices
    views = {
        first + at
        for at, info in enumerate(known.output_info)
        if info.output_type.name.startswith("alias_of")
    }
    bases = first + len(known.output_info)
    return frozenset(views | set(range(bases, bases + known.num_intermediate_bases)))


def allow_foreach(kind: type[torch.Tensor]) -> None:
    """Let optimizers and clipping work on lists of such tensors where they do so with plain ones."""
    for kinds in (_optimizer._foreach_supported_types, _foreach_utils._foreach_supported_types):
        if kind not in kinds:
            kinds.append(kind)


def forget_erased(graph: torch.fx.Graph) -> None:
    """Let go of nodes that a graph no longer has: it remembers what it has named, and so whatever they hold.

    A graph as captured has had ten times its nodes, for arithmetic of sizes that nothing uses.
    """
    named, nodes = graph._graph_namespace._obj_to_name, set(graph.nodes)
    for gone in [one for one in named if isinstance(one, torch.fx.Node) and one not in nodes]:
        del named[gone]


def overload_of(op: Any) -> torch._ops.OpOverload | None:
    """The one overload that an op of torch.library stands for, if it does."""
    op = getattr(op, "_opoverload", op)  # what torch.library.custom_op returns
    if isinstance(op, torch._ops.OpOverloadPacket):
        names = op.overloads()
        op = getattr(op, names[0]) if len(names) == 1 else None
    return op if isinstance(op, torch._ops.OpOverload) else None


def skip_frames(package: str) -> None:
    """Keep Dynamo from tracing a package's own functions, where eager ops between graphs lead into them."""
    trace_rules.add(package)


class Settings:
    """Dynamo's settings while a compiled model is called; `config.patch` does the same and takes 45 µs.

    Numbers that vary from call to call are constants, each with a graph of its own: as inputs they reach
    AOTAutograd as tensors whose values it refuses to read, and the model would run whole. LSTMs, which Dynamo
    leaves out by default, and often the frame around them, are single ops, and may as well be captured; GRUs
    and plain RNNs would be unrolled, a graph for each length.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._values: dict[str, Any] = {"specialize_float": True}
        if any(isinstance(module, torch.nn.LSTM) for module in model.modules()):
            self._values["allow_rnn"] = True
        self._before: list[dict[str, Any]] = []

    def __enter__(self) -> None:
        config = torch._dynamo.config
        self._before.append({name: getattr(config, name) for name in self._values})
        for name, value in self._values.items():
            setattr(config, name, value)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.pop().items():
            setattr(torch._dynamo.config, name, value)


def capturing_again() -> AbstractContextManager[Any]:
    """For captures by a backend of their own: code may have been captured any number of times before.

    Dynamo counts earlier captures of a function, by other backends too, and above a limit leaves it out.
    """
    patch = torch._dynamo.config.patch(recompile_limit=2**31, accumulated_recompile_limit=2**31)
    return patch  # type: ignore[no-any-return]


def compile_by_inductor(
    module: torch.fx.GraphModule, inputs: Sequence[Any], mode: FakeTensorMode, cpp_wrapper: bool
) -> Callable[..., Sequence[Any]]:
    """TorchInductor's code for a graph that needs no gradients; it draws random numbers as eager ops do.

    Args:
        module: of ATen ops, and functions made of them; nothing but inputs is written into.
        inputs: its inputs as fakes of `mode`, and numbers, which may be symbolic.
        mode: knows the sizes that vary.
        cpp_wrapper: whether what calls the kernels is C++ as well; of collectives it knows all_reduce alone.
    """
    from torch._inductor.compile_fx import compile_fx  # takes a second

    options = {"fallback_random": True, "cpp_wrapper": cpp_wrapper}
    with tracing(TracingContext(mode)), torch.no_grad():
        compiled: Any = compile_fx(module, list(inputs), config_patches=options)
    return compiled  # type: ignore[no-any-return]


@functools.cache
def linear_for_inductor() -> torch._ops.OpOverload:
    """An op `(x, weight)` for which Inductor's code calls what `linear_of_onednn` names; both are contiguous.

    Inductor's own way to that kernel is for weights that are constants of the graph.
    """
    from torch._inductor import ir, lowering, mkldnn_ir

    @torch.library.custom_op("tpfx::linear", mutates_args=())
    def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        op, *args = linear_of_onednn(x, weight) or (torch.ops.aten.linear.default, x, weight)
        return op(*args)  # type: ignore[no-any-return]

    @linear.register_fake
    def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x.new_empty((*x.shape[:-1], weight.shape[0]))

    def lower(x: Any, weight: Any) -> Any:
        return ir.TensorBox.create(mkldnn_ir.LinearUnary.create(x, weight, None, "none", [], ""))

    op: torch._ops.OpOverload = torch.ops.tpfx.linear.default
    lowering.register_lowering(op, type_promotion_kind=None)(lower)
    return op


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


def dynamic_sizes(tensor: torch.Tensor) -> set[int] | None:
    """The dimensions whose size graphs should not be specialised on; None where that has not been said."""
    return getattr(tensor, "_dynamo_weak_dynamic_indices", None)


def mark_dynamic_sizes(tensor: torch.Tensor, dims: set[int], constant: set[int] | None = None) -> None:
    """Say that these dimensions vary from call to call; Dynamo specialises where the model asks for it.

    Others are constants until they have varied, and `constant` ones always.
    """
    tensor._dynamo_weak_dynamic_indices = dims  # type: ignore[attr-defined]
    if constant:
        tensor._dynamo_static_indices = constant  # type: ignore[attr-defined]


def fresh(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same method with code of its own, by another name.

    Dynamo remembers by its code, or by the file, line and name of that, which sizes and numbers have varied
    and how often a function was captured; and methods of all models have that in common.
    """
    return _with_code(forward, lambda code: code.replace(co_name=f"{code.co_name}_{next(_serials)}"))


def twin(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same method with other code by the same name: graphs of its own, and in common what varies."""
    return _with_code(forward, lambda code: code.replace())


def _with_code(forward: Callable[..., Any], change: Callable[[CodeType], CodeType]) -> Callable[..., Any]:
    function = getattr(forward, "__func__", None)
    if not isinstance(function, FunctionType):
        return forward
    made = FunctionType(
        change(function.__code__),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    return MethodType(made, forward.__self__)  # type: ignore[attr-defined]
