"""The private names of torch's compiler that tpfx uses, in one place; `tests/test_torch_compiler.py` pins them down."""

from __future__ import annotations

from torch._dynamo.backends.common import aot_autograd as aot_autograd
from torch._functorch.aot_autograd import aot_module_simplified as aot_module_simplified
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily as unset_fake_temporarily

__all__ = ["FakeTensor", "FakeTensorMode", "aot_autograd", "aot_module_simplified", "unset_fake_temporarily"]
