"""The private names of torch's compiler that tpfx uses; `tests/test_torch_compiler.py` says what each must do."""

from __future__ import annotations

from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd as aot_autograd
from torch._functorch.aot_autograd import aot_module_simplified as aot_module_simplified
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily as unset_fake_temporarily
from torch.utils._python_dispatch import is_traceable_wrapper_subclass as is_traceable_wrapper_subclass

__all__ = [
    "FakeTensor",
    "FakeTensorMode",
    "aot_autograd",
    "aot_module_simplified",
    "dynamic_sizes",
    "is_traceable_wrapper_subclass",
    "make_wrapper_subclass",
    "mark_dynamic_sizes",
    "set_data",
    "unset_fake_temporarily",
    "without_torch_function",
]

# A tensor of a subclass, without memory: `(cls, shape, strides=, dtype=, device=, requires_grad=)`.
make_wrapper_subclass: Any = torch.Tensor._make_wrapper_subclass  # type: ignore[attr-defined]

# As a class's `__torch_function__`: its ops go straight to `__torch_dispatch__`.
without_torch_function: Any = torch._C._disabled_torch_function_impl

# `tensor.data = other`, which a subclass may have overridden: `other`'s sizes, dtype and memory.
set_data: Any = torch.Tensor.data.__set__  # type: ignore[attr-defined]


def dynamic_sizes(tensor: torch.Tensor) -> set[int] | None:
    """The dimensions whose size graphs should not be specialised on; None where that has not been said."""
    return getattr(tensor, "_dynamo_weak_dynamic_indices", None)


def mark_dynamic_sizes(tensor: torch.Tensor, dims: set[int]) -> None:
    """Say that these dimensions vary from call to call; Dynamo specialises only where the model asks for it."""
    tensor._dynamo_weak_dynamic_indices = dims  # type: ignore[attr-defined]
