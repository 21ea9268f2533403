"""Linear layers with weights of 4 bits as bitsandbytes has them, without bitsandbytes.

layer = Linear4(64, 128, nested=True)     # its scales are packed too
model = packed(model, nested=True)        # each Linear and Conv1D

Where bitsandbytes is not installed, its ops are defined here, by the formulas that its own document.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
NESTED = 256
CODE = torch.tensor([-1.0, -0.75, -0.5, -0.4, -0.3, -0.2, -0.1, 0, 0.08, 0.16, 0.25, 0.35, 0.45, 0.6, 0.7, 1])
INSTALLED = importlib.util.find_spec("bitsandbytes") is not None


def _dequantize_blockwise(numbers: Tensor, scales: Tensor, table: Tensor, block: int, dtype: Any) -> Tensor:
    wide = scales.repeat_interleave(block)[: numbers.numel()]
    return (table[numbers.long()] * wide.view(numbers.shape)).to(dtype)


def _dequantize_4bit(
    packed: Tensor, scales: Tensor, block: int, kind: str, shape: Sequence[int], dtype: Any
) -> Tensor:
    octets = packed.reshape(-1).view(torch.uint8)
    numbers = torch.stack([octets >> 4, octets & 15], -1).flatten()
    count = shape[0] * shape[1]
    assert octets.numel() == (count + 1) // 2 and scales.numel() == -(-count // block), "shapes that agree"
    wide = scales.repeat_interleave(block)[:count]
    return (CODE[numbers.long()][:count] * wide).view(tuple(shape)).to(dtype)


def _gemm_4bit(
    x: Tensor,
    packed: Tensor,
    shape: Sequence[int],
    scales: Tensor,
    block: int,
    kind: str,
    bias: Tensor | None = None,
    numbers: Tensor | None = None,
    table: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    if numbers is not None and table is not None and offset is not None:
        scales = _dequantize_blockwise(numbers, scales, table, NESTED, torch.float32) + offset
    return F.linear(x, _dequantize_4bit(packed, scales, block, kind, shape, x.dtype), bias)


def _of_gemm_4bit(x: Tensor, packed: Tensor, shape: Sequence[int], *_: Any) -> Tensor:
    torch._check(x.shape[-1] == shape[1], lambda: "as many columns as the weight")
    return x.new_empty((*x.shape[:-1], shape[0]))


_SCHEMAS = {
    "gemm_4bit": "(Tensor A, Tensor B, int[] shapeB, Tensor absmax, int blocksize, str quant_type, "
    "Tensor? bias=None, Tensor? absmax_8bit=None, Tensor? absmax_code=None, Tensor? absmax_offset=None) -> "
    "Tensor",
    "dequantize_4bit": "(Tensor A, Tensor absmax, int blocksize, str quant_type, int[] shape, ScalarType "
    "dtype) -> Tensor",
    "dequantize_blockwise": "(Tensor A, Tensor absmax, Tensor code, int blocksize, ScalarType dtype) -> "
    "Tensor",
}
_KERNELS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "gemm_4bit": (_gemm_4bit, _of_gemm_4bit),
    "dequantize_4bit": (
        _dequantize_4bit,
        lambda packed, scales, block, kind, shape, dtype: scales.new_empty(shape, dtype=dtype),
    ),
    "dequantize_blockwise": (
        _dequantize_blockwise,
        lambda numbers, scales, table, block, dtype: scales.new_empty(numbers.shape, dtype=dtype),
    ),
}
if INSTALLED:
    import bitsandbytes  # noqa: F401
else:
    for _name, (_run, _shape) in _KERNELS.items():
        torch.library.define(f"bitsandbytes::{_name}", _SCHEMAS[_name])
        torch.library.impl(f"bitsandbytes::{_name}", "CPU")(_run)
        torch.library.register_fake(f"bitsandbytes::{_name}")(_shape)
ops: Any = torch.ops.bitsandbytes


class State:
    """What a packed weight needs beside it, in attributes of its own, as bitsandbytes' QuantState."""

    def __init__(self, scales: Tensor, block: int, shape: torch.Size, nested: bool) -> None:
        self.blocksize, self.shape, self.offset, self.state2 = block, shape, None, None
        self.absmax: Any = scales
        self.unread = torch.arange(3.0)
        if nested:
            self.offset = scales.mean()
            above = F.pad(scales - self.offset, (0, -scales.numel() % NESTED)).view(-1, NESTED)
            code = torch.linspace(-1, 1, 256)
            self.state2 = State(above.abs().amax(1), NESTED, above.shape, nested=False)
            self.state2.code = code
            relative = (above / self.state2.absmax[:, None]).flatten()[: scales.numel()]
            self.absmax = ((relative + 1) * 127.5).round().to(torch.uint8)


class Weight4(nn.Parameter):
    """A packed weight, a kind of parameter, which has its state as an attribute."""

    state: State

    @staticmethod
    def of(weight: Tensor, block: int, nested: bool, storage: torch.dtype = torch.uint8) -> Weight4:
        flat = F.pad(weight.detach().float().flatten(), (0, -weight.numel() % block)).view(-1, block)
        scales = flat.abs().amax(1)
        numbers = (flat / scales[:, None]).flatten()[: weight.numel()].sub(CODE[:, None]).abs().argmin(0)
        numbers = F.pad(numbers, (0, numbers.numel() % 2)).to(torch.uint8).view(-1, 2)
        made = (numbers[:, 0] << 4 | numbers[:, 1]).view(storage).view(-1, 1).as_subclass(Weight4)
        made.requires_grad_(False)
        made.state = State(scales, block, weight.shape, nested)
        return made


class Linear4(nn.Module):
    """A linear layer with such a weight."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, block: int = 64, nested: bool = False
    ) -> None:
        super().__init__()
        self.weight = Weight4.of(weight, block, nested)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _Product.apply(x, self.weight, bias, self.weight.state)


class _Product(torch.autograd.Function):
    """The fused product, and what is unpacked for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, state: State) -> Any:
        ctx.state, ctx.weight = state, weight
        first = (x, weight, state.shape)
        if state.state2 is None:
            return ops.gemm_4bit(*first, state.absmax, state.blocksize, "nf4", bias=bias)
        inner: Any = state.state2
        nested = {"absmax_8bit": state.absmax, "absmax_code": inner.code, "absmax_offset": state.offset}
        return ops.gemm_4bit(*first, inner.absmax, state.blocksize, "nf4", bias=bias, **nested)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        state, scales = ctx.state, ctx.state.absmax
        if state.state2 is not None:
            inner = state.state2
            scales = ops.dequantize_blockwise(scales, inner.absmax, inner.code, NESTED, torch.float32)
            scales = scales + state.offset
        whole = ops.dequantize_4bit(ctx.weight, scales, state.blocksize, "nf4", state.shape, gradient.dtype)
        of_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return gradient @ whole, None, of_bias, None


def packed(model: M, wanted: Callable[[str], bool] = lambda name: True, **options: Any) -> M:
    """The model with 4-bit weights in the place of its linear layers', GPT-2's too."""
    for name, module in list(model.named_modules()):
        turned = type(module).__name__ == "Conv1D"
        if (turned or isinstance(module, nn.Linear)) and wanted(name):
            weight = module.weight.T if turned else module.weight
            model.set_submodule(name, Linear4(weight, module.bias, **options))
    return model
