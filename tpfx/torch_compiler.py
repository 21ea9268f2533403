"""The private names of torch's compiler that tpfx uses; `tests/test_torch_compiler.py` says what is
expected of each."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import FunctionType, MethodType
from typing import Any

import torch
from torch._dynamo import trace_rules
from torch._dynamo.exc import BackendCompilerFailed as BackendCompilerFailed
from torch._functorch import aot_autograd as _aot
from torch._functorch import partitioners as _partitioners
from torch._guards import TracingContext, tracing
from torch._subclasses import fake_tensor as _fakes
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily as unset_fake_temporarily
from torch.optim import optimizer as _optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import is_traceable_wrapper_subclass as is_traceable_wrapper_subclass

from .torch_private import linear_of_onednn

__all__ = [
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
    "fresh",
    "is_traceable_wrapper_subclass",
    "linear_for_inductor",
    "make_wrapper_subclass",
    "mark_dynamic_sizes",
    "min_cut_rematerialization_partition",
    "overload_of",
    "set_data",
    "skip_frames",
    "unset_fake_temporarily",
    "without_torch_function",
]

_serials = itertools.count()

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


def dynamic_sizes(tensor: torch.Tensor) -> set[int] | None:
    """The dimensions whose size graphs should not be specialised on; None where that has not been said."""
    return getattr(tensor, "_dynamo_weak_dynamic_indices", None)


def mark_dynamic_sizes(tensor: torch.Tensor, dims: set[int]) -> None:
    """Say that these dimensions vary from call to call; Dynamo specialises where the model asks for it."""
    tensor._dynamo_weak_dynamic_indices = dims  # type: ignore[attr-defined]


def fresh(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same method with code of its own, by another name.

    Dynamo remembers by its code, or by the file, line and name of that, which sizes and numbers have varied
    and how often a function was captured; and methods of all models have that in common.
    """
    function = getattr(forward, "__func__", None)
    if not isinstance(function, FunctionType):
        return forward
    fresh = FunctionType(
        function.__code__.replace(co_name=f"{function.__code__.co_name}_{next(_serials)}"),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    fresh.__kwdefaults__ = function.__kwdefaults__
    fresh.__dict__.update(function.__dict__)
    return MethodType(fresh, forward.__self__)  # type: ignore[attr-defined]
