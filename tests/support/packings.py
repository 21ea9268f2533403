"""Random ways to pack numbers of a few bits into words, as formats of quantized weights do, unpacked in ATen.

packing = Packing.drawn(random.Random(seed))
layer = Packed(torch.randn(64, 32), packing)      # its weight in words, scales and zeros
layer(x)                                          # x @ what is unpacked
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Packing:
    """A format.

    Attributes:
        bits: of each number.
        word: the dtype that numbers are packed into, as many as go in.
        along: the dimension in which neighbours share a word, of a weight `[inside, outside]`.
        strided: whether a word has numbers that lie apart, the first of each part of the dimension.
        group: how many numbers along `inside` have a scale in common; None: all.
        zeros: whether there are none, floats, or ones packed as the numbers are.
        order: whether the numbers of a word are in another order than that of its bits.
        acted: whether numbers have the scale of a group by an index, not by where they lie.
        transposed: whether the weight is kept as `[outside, inside]`.
    """

    bits: int
    word: torch.dtype
    along: Literal[0, 1]
    strided: bool
    group: int | None
    zeros: Literal["none", "float", "packed"]
    order: bool
    acted: bool
    transposed: bool

    @property
    def count(self) -> int:
        """How many numbers a word has."""
        return 8 * self.word.itemsize // self.bits

    @staticmethod
    def drawn(draw: random.Random) -> Packing:
        return Packing(
            bits=draw.randint(2, 8),
            word=draw.choice((torch.uint8, torch.int32)),
            along=draw.choice((0, 1)),
            strided=draw.random() < 0.25,
            group=draw.choice((None, 8, 16, 32)),
            zeros=draw.choice(("none", "float", "packed")),
            order=draw.random() < 0.25,
            acted=draw.random() < 0.25,
            transposed=draw.random() < 0.5,
        )


class Packed(nn.Module):
    """A linear layer of a packed weight, of as many rows and columns as go into whole words and groups."""

    def __init__(self, weight: Tensor, packing: Packing, generator: torch.Generator) -> None:
        super().__init__()
        self.packing, self.shape = packing, weight.shape
        inside, outside = weight.shape
        group = packing.group or inside
        self.order = torch.randperm(packing.count, generator=generator).tolist() if packing.order else None
        numbers = torch.randint(0, 2**packing.bits, weight.shape, generator=generator)
        zeros = torch.randint(0, 2**packing.bits, (inside // group, outside), generator=generator)
        scales = torch.rand(inside // group, outside, generator=generator) / 2**packing.bits / inside**0.5
        self.words = self._kept(self._packed(numbers))
        self.scales = self._kept(scales)
        if packing.zeros == "packed" and packing.along == 1:
            self.zeros = self._kept(self._packed(zeros))
        elif packing.zeros != "none":
            self.zeros = self._kept(zeros.float())
        if packing.acted:
            groups = torch.arange(inside) // group
            self.register_buffer("groups", groups[torch.randperm(inside, generator=generator)])

    def _kept(self, value: Tensor) -> nn.Parameter:
        value = value.T.contiguous() if self.packing.transposed else value
        return nn.Parameter(value, requires_grad=False)

    def _packed(self, numbers: Tensor) -> Tensor:
        along, bits, count = self.packing.along, self.packing.bits, self.packing.count
        parts = (count, -1) if self.packing.strided else (-1, count)
        apart = numbers.unflatten(along, parts).movedim(along if self.packing.strided else along + 1, -1)
        apart = apart if self.order is None else apart[..., self.order]
        words = sum(apart[..., at] << (bits * at) for at in range(count))
        assert isinstance(words, Tensor)
        return words.to(torch.int64).to(self.packing.word)

    def _unpacked(self, words: Tensor) -> Tensor:
        along, bits, count = self.packing.along, self.packing.bits, self.packing.count
        words = words.T if self.packing.transposed else words
        shifts = torch.arange(0, bits * count, bits, dtype=words.dtype)
        apart = (words.unsqueeze(-1) >> shifts) & (2**bits - 1)
        if self.order is not None:
            apart = apart[..., [self.order.index(at) for at in range(count)]]
        return apart.movedim(-1, along if self.packing.strided else along + 1).flatten(along, along + 1)

    def whole(self) -> Tensor:
        """The weight `[inside, outside]`."""
        numbers = self._unpacked(self.words).float()
        scales = self.scales.T if self.packing.transposed else self.scales
        zeros: Tensor | float = 0.0
        if self.packing.zeros != "none":
            is_packed = self.zeros.dtype != torch.float32
            plain = self.zeros.T if self.packing.transposed else self.zeros
            zeros = self._unpacked(self.zeros).float() if is_packed else plain
        if self.packing.acted:
            zeros = zeros[self.groups] if isinstance(zeros, Tensor) else zeros
            return (numbers - zeros) * scales[self.groups]
        groups = numbers.unflatten(0, (scales.shape[0], -1))
        zeros = zeros.unsqueeze(1) if isinstance(zeros, Tensor) else zeros
        return ((groups - zeros) * scales.unsqueeze(1)).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.packing.transposed:
            return nn.functional.linear(x, self.whole().T)
        return x @ self.whole()


class Between(nn.Module):
    """Two packed layers of one format, in sizes that whole words and groups divide."""

    def __init__(self, packing: Packing, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        small, large = (packing.count * 32 * times for times in (1, 2))
        self.up = Packed(torch.empty(small, large), packing, generator)
        self.down = Packed(torch.empty(large, small), packing, generator)
        self.x = torch.randn(3, small, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())
