"""A weight that is kept in blocks of bytes, and unpacked by each op that takes it; of a lookup, some rows.

    weight = PackedWeight(blocks, "Q4_0", torch.float32)    # blocks: uint8 [rows, blocks, 18]
    module.weight = torch.nn.Parameter(weight, requires_grad=False)

It is made of one tensor, its blocks, which are divided by their own axes: rows, and columns between blocks.
"""

from __future__ import annotations

from typing import Any, Self

import torch

from ..errors import ModelError
from ..torch_internals.fx import tree_map_only
from ..torch_internals.wrapper_subclass import make_wrapper_subclass, without_torch_function
from .block_formats import FORMATS

aten = torch.ops.aten


class PackedWeight(torch.Tensor):
    """A frozen weight `[..., columns]`, of which a row is so many blocks of a format of llama.cpp.

    Attributes:
        blocks: the bytes, uint8 `[..., blocks, bytes of a block]`.
        format: which format, a name of `FORMATS`.
    """

    blocks: torch.Tensor
    format: str

    # Ops arrive below autograd, where few are left; of the weight itself there is no gradient.
    __torch_function__ = without_torch_function

    def __new__(cls, blocks: torch.Tensor, format: str, dtype: torch.dtype) -> Self:
        """What has these blocks, and calculates as a tensor of `dtype`."""
        shape = (*blocks.shape[:-2], blocks.shape[-2] * FORMATS[format].numbers)
        made: Self = make_wrapper_subclass(cls, shape, dtype=dtype, device=blocks.device)
        made.blocks, made.format = blocks, format
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PackedWeight({list(self.shape)}, {self.format}, {self.dtype}, device={self.device})"

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["blocks"], (self.format, self.dtype)

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, torch.Tensor], context: Any, *_: Any) -> Self:
        return cls(inner["blocks"], *context)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _COPIES:
            return _copied(func, *args, **kwargs)
        if func is aten.embedding.default:
            return _looked_up(*args)
        if func._schema.is_mutable and isinstance(args[0], cls):
            return _written(func, *args)
        args, kwargs = tree_map_only(cls, unpacked, (args, kwargs))
        return func(*args, **kwargs)


_COPIES = (aten.detach.default, aten.clone.default, aten.alias.default, aten._to_copy.default)


def unpacked(weight: PackedWeight) -> torch.Tensor:
    """The numbers, a plain tensor."""
    return FORMATS[weight.format].unpack(weight.blocks).to(weight.dtype)


def _copied(func: Any, weight: PackedWeight, dtype: torch.dtype | None = None, **kwargs: Any) -> PackedWeight:
    """The same weight, elsewhere or of another dtype: its blocks stay bytes."""
    return PackedWeight(func(weight.blocks, **kwargs), weight.format, dtype or weight.dtype)


def _looked_up(weight: PackedWeight, rows: torch.Tensor, *_: Any) -> torch.Tensor:
    """Some rows: their blocks are looked up, and only these are unpacked."""
    found = aten.embedding.default(weight.blocks.flatten(-2), rows)
    blocks = found.unflatten(-1, weight.blocks.shape[-2:])
    return unpacked(PackedWeight(blocks, weight.format, weight.dtype))


def _written(func: Any, weight: PackedWeight, *args: Any) -> PackedWeight:
    """The weight, with the contents of another.

    Raises:
        ModelError: anything else is written.
    """
    other = args[0] if args else None
    if func is not aten.copy_.default or not isinstance(other, PackedWeight) or other.format != weight.format:
        raise ModelError(
            f"{func} would write into a weight {list(weight.shape)} that is packed as {weight.format}: it is "
            "frozen, and takes the blocks of another such weight only; tpfx.load(..., dequantize=True) makes "
            "plain weights of a GGUF file's"
        )
    weight.blocks.copy_(other.blocks)
    return weight
