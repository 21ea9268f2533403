"""Weights as quantizing libraries make them: tensors of subclasses that are made of others.

model = quantized(model, Int8)        # each Linear's weight: int8 and a scale a row
model = quantized(model, Packed4)     # two numbers of 4 bits a byte, a scale for each group of 8
model = quantized(model, Doubled)     # an Int8 in another, with a factor
model = quantized(model, Scaled8)     # as quanto has 8 bits: an Int8 of which a kernel makes the product
model = quantized(model, Halves4)     # as quanto has 4 bits: a byte has a number of each half of the rows

Where quanto is not installed, its ops are defined here, by the formulas that its own document.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

aten = torch.ops.aten
M = TypeVar("M", bound=nn.Module)
GROUP = 8


def _qbytes_mm(x: torch.Tensor, numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return x.to(scales.dtype) @ (scales * numbers).t()


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    return torch.cat([packed >> at & 2**bits - 1 for at in range(0, 8, bits)])


if importlib.util.find_spec("optimum") and importlib.util.find_spec("optimum.quanto"):
    import optimum.quanto  # noqa: F401
else:
    _SCHEMAS = {
        "qbytes_mm": "(Tensor A, Tensor B, Tensor scales) -> Tensor",
        "unpack": "(Tensor self, int bits) -> Tensor",
    }
    for _name, _run in {"qbytes_mm": _qbytes_mm, "unpack": _unpack}.items():
        torch.library.define(f"quanto::{_name}", _SCHEMAS[_name])
        torch.library.impl(f"quanto::{_name}", "default")(_run)
quanto: Any = torch.ops.quanto


class Quantized(torch.Tensor):
    """What such classes have in common: ops go to the tensors inside, products to their whole."""

    NAMES: ClassVar[tuple[str, ...]]

    def __new__(cls, *inside: torch.Tensor, shape: torch.Size | None = None) -> Self:
        like = inside[0]
        shape, dtype = shape or like.shape, inside[-1].dtype
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=like.device)
        for name, tensor in zip(cls.NAMES, inside, strict=True):
            setattr(made, name, tensor)
        return made

    @classmethod
    def of(cls, weight: torch.Tensor) -> Self:
        raise NotImplementedError

    def whole(self) -> torch.Tensor:
        raise NotImplementedError

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.whole())

    def inside(self) -> list[torch.Tensor]:
        return [getattr(self, name) for name in self.NAMES]

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return list(self.NAMES), self.shape

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, torch.Tensor], context: Any, *_: Any) -> Self:
        return cls(*(inner[name] for name in cls.NAMES), shape=context)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            x, weight, bias = (*args, *(kwargs or {}).values(), None)[:3]
            return weight.product(x) if bias is None else weight.product(x) + bias
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.copy_.default:
            for own, other in zip(args[0].inside(), args[1].inside(), strict=True):
                own.copy_(other)
            return args[0]
        if func in (aten.detach.default, aten.clone.default, aten.alias.default):
            return cls(*(func(one, **(kwargs or {})) for one in args[0].inside()), shape=args[0].shape)
        if func is aten._to_copy.default:
            *first, last = args[0].inside()
            return cls(*first, func(last, **(kwargs or {})), shape=args[0].shape)
        raise NotImplementedError(f"{func} of {cls.__name__}")


class Int8(Quantized):
    NAMES = ("qdata", "scale")

    @classmethod
    def of(cls, weight: torch.Tensor) -> Self:
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def whole(self) -> torch.Tensor:
        return self.qdata.to(self.scale.dtype) * self.scale


class Packed4(Quantized):
    NAMES = ("qdata", "scale")

    @classmethod
    def of(cls, weight: torch.Tensor) -> Self:
        groups = weight.unflatten(1, (-1, GROUP))
        scale = groups.abs().amax(-1) / 7
        whole = ((groups / scale.unsqueeze(-1)).round() + 8).to(torch.uint8).flatten(1)
        return cls(whole[:, ::2] | whole[:, 1::2] << 4, scale, shape=weight.shape)

    def whole(self) -> torch.Tensor:
        numbers = torch.stack([self.qdata & 15, self.qdata >> 4], -1).flatten(1).to(self.scale.dtype) - 8
        return (numbers.unflatten(1, (-1, GROUP)) * self.scale.unsqueeze(-1)).flatten(1)


class Doubled(Quantized):
    NAMES = ("inner", "factor")

    @classmethod
    def of(cls, weight: torch.Tensor) -> Self:
        return cls(Int8.of(weight / 2), torch.full((1,), 2.0))

    def whole(self) -> torch.Tensor:
        return self.inner.whole() * self.factor


class Scaled8(Int8):
    def product(self, x: torch.Tensor) -> torch.Tensor:
        flat: torch.Tensor = quanto.qbytes_mm(x.flatten(0, -2), self.qdata, self.scale)
        return flat.unflatten(0, x.shape[:-1])


class Halves4(Quantized):
    NAMES = ("qdata", "shift", "scale")

    @classmethod
    def of(cls, weight: torch.Tensor) -> Self:
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        scale = (high - low) / 15
        numbers = ((weight - low) / scale).round().to(torch.uint8)
        first, second = numbers.chunk(2)
        return cls(first | second << 4, -low, scale, shape=weight.shape)

    def whole(self) -> torch.Tensor:
        numbers: torch.Tensor = quanto.unpack(self.qdata, 4)
        return self.scale * numbers - self.shift


def quantized(model: M, kind: type[Quantized], wanted: Callable[[str], bool] = lambda name: True) -> M:
    """The model with the weights of its linear layers quantized, in place."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and wanted(name):
            made = kind.of(module.weight.detach())
            module.weight = nn.Parameter(made, requires_grad=False)
    return model
