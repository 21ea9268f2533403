"""Fake tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tpfx.torch_internals import fake


def test_fakes_say_so_where_they_do_not_know() -> None:
    with fake.FakeTensorMode():
        flags = torch.ones(3, dtype=torch.bool)
        for unknown in (flags.nonzero, flags.sum().item):
            with pytest.raises(fake.UNKNOWN_TO_FAKES):
                unknown()


def test_fake_modes_can_be_left_for_a_while() -> None:
    with fake.FakeTensorMode():
        assert isinstance(torch.ones(2), fake.FakeTensor)
        with fake.unset_fake_temporarily():
            assert type(torch.ones(2)) is Tensor
