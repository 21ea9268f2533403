"""What the tensors of a GGUF file are in a model: their names, and the order of their rows.

    conversion = Conversion(model, reader, path)
    conversion.name("blk.0.attn_q.weight")                      # model.layers.0.self_attn.q_proj.weight
    conversion.moves("blk.0.attn_q.weight", (512, 512))         # which row of the file each row is
    conversion.convert("blk.0.attn_norm.weight", numbers)       # of a whole tensor

transformers knows both, and converts whole tensors, dequantized. What only moves rows moves those of packed
ones as well: it is seen in what becomes of a tensor of which each number is that of its row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ModelError

# The sizes of a model by which rows are moved, as files call them.
_HEADS = ("attention.head_count", "attention.head_count_kv")


@dataclass(frozen=True, slots=True)
class Moved:
    """What becomes of a tensor.

    Attributes:
        shape: its shape in the model.
        rows: of each row there, which one of the file it is; None where nothing moves.
        calculated: whether more becomes of it than that its rows are moved.
    """

    shape: tuple[int, ...]
    rows: npt.NDArray[Any] | None
    calculated: bool


class Conversion:
    """What transformers makes of the tensors of a file for one of its models; of any other module, nothing.

    Raises:
        ModelError: the file is of an architecture that it does not know, or of other numbers of heads.
    """

    def __init__(self, model: torch.nn.Module, reader: Any, path: Path) -> None:
        self.path = path
        self._names: dict[str, str] = {}
        self._processor: Any = None
        self._known: dict[tuple[str, tuple[int, ...]], Moved] = {}
        config = getattr(model, "config", None)
        if hasattr(config, "model_type"):
            self._ask_transformers(model, config, reader)

    def _ask_transformers(self, model: torch.nn.Module, config: Any, reader: Any) -> None:
        from transformers import modeling_gguf_pytorch_utils as known

        architecture = _field(reader, "general.architecture")
        _check_heads(known, config, reader, architecture, self.path)
        processor = known.TENSOR_PROCESSORS.get(architecture, known.TensorProcessor)(config=config.to_dict())
        try:
            self._names = known.get_gguf_hf_weights_map(model, processor, architecture)
        except NotImplementedError as problem:
            raise ModelError(
                f"{self.path} is of architecture {architecture}, whose names the package gguf does not know: "
                "have the newest, pip install -U gguf"
            ) from problem
        self._processor = processor

    def name(self, key: str) -> str:
        """What the model calls a tensor; its own name where that is not known."""
        return self._names.get(key) or self._names.get(key.removesuffix(".weight")) or key

    def convert(self, key: str, whole: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What becomes of a tensor's numbers.

        Raises:
            ModelError: several tensors become one of the model's.
        """
        if self._processor is None:
            return whole
        others: dict[str, dict[str, torch.Tensor]] = {"tensors": {}}
        with np.errstate(all="ignore"):  # of numbers that stand for rows
            made = self._processor.process(
                weights=whole, name=key, tensor_key_mapping=self._names, parsed_parameters=others
            )
        kept = list(others["tensors"].values())
        if made.name is None and (len(kept) != 1 or kept[0].numel() != whole.size):
            raise ModelError(
                f"{key} in {self.path} is a part of {self.name(key)}, which tpfx does not put together: load "
                "the model whole, by its class, from_pretrained(folder, gguf_file=name), and compile that"
            )
        return kept[0].numpy() if made.name is None else made.weights

    def moves(self, key: str, shape: tuple[int, ...]) -> Moved:
        """What becomes of a tensor of this shape; that of layers that are alike is asked once."""
        kind = re.sub(r"\d+", "#", key), shape
        if kind not in self._known:
            self._known[kind] = self._moves(key, shape)
        return self._known[kind]

    def _moves(self, key: str, shape: tuple[int, ...]) -> Moved:
        count, inner = shape[0], int(np.prod(shape[1:]))
        row = np.arange(count, dtype=np.int32).reshape(count, *[1] * (len(shape) - 1))
        column = np.arange(inner, dtype=np.int32).reshape(1, *shape[1:])
        given = np.broadcast_to(row, shape)  # which takes no memory
        by_row = self.convert(key, given)
        if by_row is given:
            return Moved(shape, None, False)
        if by_row.shape == shape:
            rows = by_row.reshape(count, inner)[:, 0]
            in_rows = np.array_equal(
                by_row.reshape(count, inner), np.broadcast_to(rows[:, None], (count, inner))
            )
            is_moved = in_rows and np.array_equal(np.sort(rows), np.arange(count))
            if is_moved and (self.convert(key, np.broadcast_to(column, shape)) == column).all():
                return Moved(shape, rows.astype(np.int64), False)
        return Moved(by_row.shape, None, True)


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _check_heads(known: Any, config: Any, reader: Any, architecture: Any, path: Path) -> None:
    """Rows would be moved wrongly, by the heads of another model."""
    names = known.GGUF_TO_TRANSFORMERS_MAPPING["config"].get(architecture, {})
    for field in _HEADS:
        stored, own = _field(reader, f"{architecture}.{field}"), getattr(config, names.get(field) or "", None)
        if isinstance(stored, int) and isinstance(own, int) and stored != own:
            raise ModelError(
                f"{field} is {stored} in {path}, and {names[field]} is {own} in the model: make the model of "
                "the file's own config, AutoConfig.from_pretrained(folder, gguf_file=name)"
            )
