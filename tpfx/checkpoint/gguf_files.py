"""Weights from a GGUF file, as llama.cpp writes it: each rank reads its slices, and keeps them packed.

    checkpoint = GgufFile("model.gguf", model)
    with packed_in_place(model, weights_in(model, checkpoint)) as stored: ...    # or dequantized, without

The package `gguf` reads the file's table of tensors; `gguf_names` says what they are in the model.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ModelError
from ..ir.shards import SplitDims
from ..kernels.slices import take
from ..torch_internals.parameter_slots import slots_of
from .block_formats import FORMATS, BlockFormat
from .gguf_names import Conversion
from .packed_weight import PackedWeight
from .safetensors_files import Checkpoint, Stored


@dataclass
class InBlocks(Stored):
    """A tensor of a GGUF file, of which any slice is read and dequantized by itself.

    Attributes:
        format: how it is packed, a name of `FORMATS`.
        offset: where in the file its first byte is.
        rows: of each row, which one of the file it is; None: all are in order.
    """

    format: str
    offset: int
    rows: np.ndarray[Any, Any] | None

    @property
    def layout(self) -> BlockFormat:
        """The format of its blocks."""
        return FORMATS[self.format]

    @property
    def blocks_shape(self) -> tuple[int, ...]:
        """That of its bytes: `[..., blocks, bytes of a block]`."""
        return (*self.shape[:-1], self.shape[-1] // self.layout.numbers, self.layout.bytes)

    def blocks(self, there: tuple[slice, ...]) -> torch.Tensor:
        """Some of its bytes. The file is mapped anew each time: what is mapped counts as resident."""
        mapped = np.memmap(self.file, np.uint8, "r", self.offset, self.blocks_shape)
        where: Any = there if self.rows is None else (self.rows[there[0]], *there[1:])
        return torch.from_numpy(np.array(mapped[where]))

    def piece(self, there: tuple[slice, ...]) -> torch.Tensor:
        """Some of its numbers: of the blocks around them, those."""
        *outer, columns = there
        first, last = columns.start // self.layout.numbers, -(-columns.stop // self.layout.numbers)
        found = self.layout.unpack(self.blocks((*outer, slice(first, last))))
        before = first * self.layout.numbers
        return found[..., columns.start - before : columns.stop - before]


@dataclass
class Blocks(Stored):
    """The bytes of a tensor of a GGUF file, as they are there: `[..., blocks, bytes of a block]`."""

    tensor: InBlocks

    def piece(self, there: tuple[slice, ...]) -> torch.Tensor:
        """Some of them."""
        return self.tensor.blocks(there)


@dataclass
class Converted(Stored):
    """What transformers makes of a whole tensor of a GGUF file: it is transposed, or has other numbers."""

    tensor: InBlocks
    convert: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]

    def read(self, shard: torch.Tensor, dims: SplitDims, rank: int) -> None:
        """Fill a rank's shard, of what is converted whole."""
        whole = self.tensor.piece(tuple(slice(0, extent) for extent in self.tensor.shape))
        shard.copy_(take(torch.from_numpy(np.ascontiguousarray(self.convert(whole.numpy()))), dims, rank))
        self.read_bytes(shard.nbytes)


class GgufFile(Checkpoint):
    """The tensors of a GGUF file, or of all that one was split into, by the names that a model has for them.

    Raises:
        ModelError: there is no such file, or it cannot be read, or has tensors of a type that is not known;
            or does not fit the model.
    """

    def __init__(
        self, path: str | Path, model: torch.nn.Module, read_bytes: Callable[[int], None] = lambda size: None
    ) -> None:
        self.path = Path(path)
        files = {file: _reader(file) for file in _parts(self.path)}
        conversion = Conversion(model, next(iter(files.values())), self.path)
        self.tensors = {}
        for file, reader in files.items():
            for tensor in reader.tensors:
                name, stored = _stored(file, tensor, conversion, read_bytes)
                self.tensors[name] = stored


def checkpoint_at(path: str | Path, model: torch.nn.Module, read_bytes: Callable[[int], None]) -> Checkpoint:
    """The weights that a path names, in a GGUF file or in safetensors files.

    Raises:
        ModelError: there is no such file, or it is of another kind, or does not fit the model.
    """
    return GgufFile(path, model, read_bytes) if Path(path).suffix == ".gguf" else Checkpoint(path, read_bytes)


def _stored(
    file: Path, tensor: Any, conversion: Conversion, read_bytes: Callable[[int], None]
) -> tuple[str, Stored]:
    """A tensor of a file, by the model's name for it."""
    key, shape = str(tensor.name), tuple(map(int, reversed(tensor.shape)))
    format = tensor.tensor_type.name
    if format not in FORMATS:
        raise ModelError(
            f"{key} in {file} is of type {format}; tpfx reads {', '.join(FORMATS)}: quantize the model to "
            "one of these, by llama-quantize"
        )
    name, moved, offset = conversion.name(key), conversion.moves(key, shape), int(tensor.data_offset)
    if not moved.calculated and (moved.rows is None or len(shape) > 1 or FORMATS[format].numbers == 1):
        return name, InBlocks(file, key, shape, read_bytes, format, offset, moved.rows)
    source = InBlocks(file, key, shape, read_bytes, format, offset, None)
    return name, Converted(file, key, moved.shape, read_bytes, source, partial(conversion.convert, key))


def _parts(path: Path) -> list[Path]:
    """The file, or all that the whole was split into."""
    part = re.fullmatch(r"(.*-)\d{5}(-of-)(\d{5})\.gguf", path.name)
    count = int(part[3]) if part else 0
    files = (
        [path.with_name(f"{part[1]}{at:05}{part[2]}{part[3]}.gguf") for at in range(1, count + 1)]
        if part
        else [path]
    )
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"there is no {', '.join(missing[:5])} in {path.parent}: name a GGUF file that is there"
        )
    return files


def _reader(file: Path) -> Any:
    """What the package `gguf` finds in a file."""
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as problem:
        raise ModelError(
            f"{file} is read by the package gguf, which is not installed: pip install 'tpfx[gguf]'"
        ) from problem
    try:
        reader = GGUFReader(file)
    except (ValueError, KeyError, IndexError) as problem:
        raise ModelError(f"{file} is no GGUF file that can be read: {problem}; fetch it anew") from problem
    if reader.byte_order == "S":
        raise ModelError(
            f"{file} has the bytes of numbers in the other order: convert it by gguf_convert_endian"
        )
    return reader


@contextmanager
def packed_in_place(model: torch.nn.Module, stored: Mapping[int, Stored]) -> Iterator[dict[int, Stored]]:
    """Put packed weights in the place of those that a file has packed; those are back if anything fails.

    What is given and yielded is, by identity, where each weight is stored; of a packed one, its blocks.
    """
    made: dict[int, tuple[torch.Tensor, torch.nn.Parameter]] = {}
    places, found = [], dict(stored)
    for slot in slots_of(model):
        original, tensor = slot.value, stored.get(id(slot.value))
        if isinstance(tensor, InBlocks) and tensor.layout.numbers > 1 and slot.kind == "parameter":
            if id(original) not in made:
                made[id(original)] = original, _packed(tensor, original, found)
                del found[id(original)]
            places.append((slot, original))
            slot.table[slot.key] = made[id(original)][1]
    _warn_of_dequantized(stored)
    try:
        yield found
    except BaseException:
        for slot, original in places:
            slot.table[slot.key] = original
        raise


def _packed(tensor: InBlocks, original: torch.Tensor, found: dict[int, Stored]) -> torch.nn.Parameter:
    blocks = torch.empty(tensor.blocks_shape, dtype=torch.uint8, device="meta")
    made = torch.nn.Parameter(PackedWeight(blocks, tensor.format, original.dtype), requires_grad=False)
    stored = Blocks(tensor.file, tensor.key, tensor.blocks_shape, tensor.read_bytes, tensor)
    found[id(made.blocks)] = stored  # type: ignore[attr-defined]
    return made


def _warn_of_dequantized(stored: Mapping[int, Stored]) -> None:
    """Say what cannot stay packed."""
    unpacked = [
        one for one in stored.values() if isinstance(one, Converted) and one.tensor.layout.numbers > 1
    ]
    if unpacked:
        size = sum(math.prod(one.shape) for one in unpacked)
        warnings.warn(
            f"{len(unpacked)} weights of {size} numbers are dequantized as they are read, as the model has "
            f"them transposed, or has other numbers: {', '.join(one.key for one in unpacked[:5])}",
            stacklevel=5,
        )
