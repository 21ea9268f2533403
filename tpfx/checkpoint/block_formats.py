"""The block formats of llama.cpp: so many numbers of a row are a block of bytes, unpacked by ATen ops.

    q4_0 = FORMATS["Q4_0"]                  # 32 numbers in 18 bytes
    q4_0.unpack(blocks)                     # uint8 [..., blocks, 18] -> float32 [..., 32 * blocks]

Views, slices, shifts, masks and products, no op of their own: in a graph, axes are inferred op by op. The
numbers are those of the package `gguf` bit for bit, whose `quants.py` says how each format is packed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """One of the formats.

    Attributes:
        numbers: how many a block has.
        bytes: how many a block takes.
        unpack_blocks: uint8 `[..., bytes]` to float32 `[..., numbers]`.
    """

    numbers: int
    bytes: int
    unpack_blocks: Callable[[torch.Tensor], torch.Tensor]

    def unpack(self, blocks: torch.Tensor) -> torch.Tensor:
        """uint8 `[..., blocks, bytes]` to float32 `[..., blocks * numbers]`."""
        return self.unpack_blocks(blocks).flatten(-2)


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The number of 16 bits that is at a byte of each block: `[..., 1]`."""
    return blocks[..., at : at + 2].view(torch.float16).float()


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Of bytes, a row of their lower halves and one of their upper: `[..., n]` to `[..., 2, n]`."""
    return torch.stack([packed & 15, packed >> 4], -2)


def _bits(packed: torch.Tensor, width: int) -> torch.Tensor:
    """The same, of parts of so many bits, lowest first: `[..., n]` to `[..., 8 / width, n]`."""
    return torch.stack([(packed >> low) & ((1 << width) - 1) for low in range(0, 8, width)], -2)


def _f32(blocks: torch.Tensor) -> torch.Tensor:
    numbers: torch.Tensor = blocks.view(torch.float32)
    return numbers


def _f16(blocks: torch.Tensor) -> torch.Tensor:
    return blocks.view(torch.float16).float()


def _bf16(blocks: torch.Tensor) -> torch.Tensor:
    return blocks.view(torch.bfloat16).float()


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return blocks[..., 2:].view(torch.int8).float() * _half(blocks, 0)


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    return (_nibbles(blocks[..., 2:]).flatten(-2).float() - 8) * _half(blocks, 0)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return _nibbles(blocks[..., 4:]).flatten(-2).float() * _half(blocks, 0) + _half(blocks, 2)


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    numbers = _nibbles(blocks[..., 16:].unflatten(-1, (4, 32))).flatten(-3, -2)
    return _scaled(blocks, numbers)


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    low = _nibbles(blocks[..., 48:].unflatten(-1, (4, 32))).flatten(-3, -2)
    return _scaled(blocks, low | _bits(blocks[..., 16:48], 1) << 4)


def _scaled(blocks: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The numbers of blocks, from those of 4 or 5 bits `[..., 8, 32]`: each 32 have a factor and a minimum.

    A block begins with the scale of its factors and that of its minima; in 12 bytes are these, of 6 bits:
    four factors, four minima, and the lower bits of the others, whose upper two are atop the first eight.
    """
    first, minima, others = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    factors = torch.cat([first & 63, others & 15 | first >> 2 & 48], -1)
    below = torch.cat([minima & 63, others >> 4 | minima >> 2 & 48], -1)
    scale, minimum = _half(blocks, 0) * factors.float(), _half(blocks, 2) * below.float()
    return (scale.unsqueeze(-1) * numbers.float() - minimum.unsqueeze(-1)).flatten(-2)


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    low = _nibbles(blocks[..., :128].unflatten(-1, (2, 64))).unflatten(-1, (2, 32)).flatten(-4, -2)
    high = _bits(blocks[..., 128:192].unflatten(-1, (2, 32)), 2).flatten(-3, -2)
    numbers = (low | high << 4).float() - 32
    scale = _half(blocks, 208) * blocks[..., 192:208].view(torch.int8).float()
    sixteenths: torch.Tensor = numbers.flatten(-2).unflatten(-1, (16, 16))
    return (scale.unsqueeze(-1) * sixteenths).flatten(-2)


# By the names of llama.cpp; those whose blocks are single numbers are plain.
FORMATS = {
    "F32": BlockFormat(1, 4, _f32),
    "F16": BlockFormat(1, 2, _f16),
    "BF16": BlockFormat(1, 2, _bf16),
    "Q8_0": BlockFormat(32, 34, _q8_0),
    "Q4_0": BlockFormat(32, 18, _q4_0),
    "Q4_1": BlockFormat(32, 20, _q4_1),
    "Q4_K": BlockFormat(256, 144, _q4_k),
    "Q5_K": BlockFormat(256, 176, _q5_k),
    "Q6_K": BlockFormat(256, 210, _q6_k),
}
