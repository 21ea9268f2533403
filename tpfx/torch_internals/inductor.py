"""oneDNN on CPU, where it is faster than ATen; TorchInductor on one graph, and an op for it; CUDA graphs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._guards import TracingContext, tracing

from .fake import FakeTensorMode


def linear_of_onednn(x: Any, weight: Any) -> tuple[Any, ...] | None:
    """The op and its arguments for `linear(x, weight)` by oneDNN; None in builds of torch without it.

    For float32 on CPU it is faster than aten.linear, which calls MKL: a quarter less time for 1 to 5 rows, 5
    to 15% less for 64 and more (AMD EPYC, AVX-512, torch 2.13). Neither operand may have a last dimension of
    size 0. Its bias is left out: one that is not contiguous is read wrongly.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    return torch.ops.mkldnn._linear_pointwise.default, x, weight, None, "none", [], ""


def is_linear_of_onednn(op: Any) -> bool:
    """Whether an op is the one that `linear_of_onednn` names; its first two arguments are x and weight."""
    return torch.backends.mkldnn.is_available() and op is torch.ops.mkldnn._linear_pointwise.default


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


def has_rnn_layer() -> bool:
    """Whether torch has oneDNN's recurrent layers, and may use them."""
    return bool(torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled())


@functools.cache
def rnn_layer_for_training() -> torch._ops.OpOverload:
    """aten.mkldnn_rnn_layer, keeping what its backward reads: without gradients it gives None for that."""
    layer = torch.ops.aten.mkldnn_rnn_layer.default

    @torch.library.custom_op(
        "tpfx::rnn_layer",
        mutates_args=(),
        schema=str(layer._schema).removeprefix("aten::mkldnn_rnn_layer"),
    )
    def rnn_layer(*args: Any) -> Any:
        with torch.enable_grad():
            return layer(*args[:-1], True)

    @rnn_layer.register_fake
    def _(*args: Any) -> Any:
        return layer(*args)

    op: torch._ops.OpOverload = torch.ops.tpfx.rnn_layer.default
    return op


def end_failed_capture(device: torch.device, pool: tuple[int, int]) -> None:
    """Have the device's allocator leave a pool that a capture has filled, as one that ended well has.

    torch ends the capture of the stream first, and raises where that fails, before it comes to the allocator.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    with contextlib.suppress(RuntimeError):  # it has come to it
        torch._C._cuda_endAllocateToPool(index, pool)


@contextlib.contextmanager
def own_cublas_workspaces() -> Iterator[None]:
    """Where a capture is inside: what products work in is memory of its pool, which no one else is given.

    torch keeps such memory for each stream until somebody has it cleared, as Inductor does around captures
    of its own: a graph that had been captured with it would go on to write there.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()
