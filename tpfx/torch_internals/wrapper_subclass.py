"""What a tensor subclass without memory of its own needs."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import optimizer as _optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import is_traceable_wrapper_subclass as is_traceable_wrapper_subclass

from .effects import Effect, Undo

# A tensor of a subclass, without memory: `(cls, shape, strides=, dtype=, device=, requires_grad=)`.
make_wrapper_subclass: Any = torch.Tensor._make_wrapper_subclass

# As a class's `__torch_function__`: its ops go straight to `__torch_dispatch__`.
without_torch_function: Any = torch._C._disabled_torch_function_impl

# `tensor.data = other`, which a subclass may have overridden: `other`'s sizes, dtype and memory.
set_data: Any = vars(torch._C.TensorBase)["data"].__set__


def allow_foreach(kind: type[torch.Tensor]) -> Effect:
    """Optimizers and clipping work on lists of such tensors where they do so with plain ones."""

    def install() -> Undo:
        lists = [
            kinds
            for kinds in (_optimizer._foreach_supported_types, _foreach_utils._foreach_supported_types)
            if kind not in kinds
        ]
        for kinds in lists:
            kinds.append(kind)

        def undo() -> bool:
            for kinds in lists:
                if kind in kinds:
                    kinds.remove(kind)
            return True

        return undo

    return Effect(f"lists of {kind.__name__}", install)
