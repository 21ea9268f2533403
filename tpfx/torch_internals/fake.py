"""Fake tensors, and what ops raise on them."""

from __future__ import annotations

from torch._subclasses import fake_tensor as _fakes
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily as unset_fake_temporarily

# What an op raises on fake tensors where its shapes depend on values, or it was never told about fakes.
UNKNOWN_TO_FAKES = (
    _fakes.DataDependentOutputException,
    _fakes.DynamicOutputShapeException,
    _fakes.UnsupportedOperatorException,
)
