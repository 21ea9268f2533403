"""Values that are handed to another process as bytes: what is no dense tensor.

text = write_value(torch.eye(3).to_sparse())
value = read_value(text)
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch

_OF_TORCH = b"PK"  # how what torch writes begins


def write_value(value: Any) -> bytes:
    """A value as bytes."""
    if not isinstance(value, torch.Tensor):
        return pickle.dumps(value)
    written = io.BytesIO()
    torch.save(value, written)
    return written.getvalue()


def read_value(text: bytes) -> Any:
    """The value that `write_value` has written, in a process of the same program.

    Tensors are read as torch reads files: one that is sparse, unpickled by itself, torch would keep to check
    it when it reads its next file.
    """
    if text.startswith(_OF_TORCH):
        return torch.load(io.BytesIO(text), weights_only=False)
    return pickle.loads(text)
