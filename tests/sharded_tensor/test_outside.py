"""What programs that know nothing of shards get of a split tensor: its numbers, or an error."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import dlpack

import tpfx
from tests.support.sharded import PLACEMENTS, SHAPE, sharded

WHOLE = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
READ: dict[str, Callable[[Tensor], Tensor]] = {
    "numpy": lambda x: torch.from_numpy(x.numpy()),
    "an array": lambda x: torch.from_numpy(np.asarray(x)),
    "dlpack": torch.from_dlpack,
    "numpy by dlpack": lambda x: torch.from_numpy(np.from_dlpack(x)),
    "a list": lambda x: torch.tensor(x.tolist()),
    "a text": lambda x: torch.tensor([float(f"{one:.7f}") for one in x.flatten()]).view(SHAPE),
}


@pytest.mark.parametrize("placement", ["undivided", "rows", "two dims"])
@pytest.mark.parametrize("way", READ)
def test_numbers_are_those_of_the_whole(way: str, placement: str) -> None:
    tensor = sharded(WHOLE, PLACEMENTS[placement])
    read = READ[way](tensor)
    torch.testing.assert_close(read, WHOLE, atol=1e-6, rtol=0)
    read.zero_()
    assert torch.equal(tensor.full(), WHOLE)


def test_what_requires_grad_is_not_exported() -> None:
    with pytest.raises(BufferError, match=r"use tensor\.detach\(\)"):
        torch.from_dlpack(sharded(WHOLE, PLACEMENTS["rows"]).requires_grad_())


def test_what_cannot_be_had_is_refused_with_a_remedy() -> None:
    tensor = sharded(WHOLE, PLACEMENTS["rows"])
    with pytest.raises(tpfx.ShardingError, match=r"cannot be shared between processes: share what tpfx"):
        tensor.share_memory_()
    with pytest.raises(tpfx.ShardingError, match=r"has no address: save model\.state_dict"):
        tensor.storage()
    with pytest.raises(RuntimeError, match="Cannot access data pointer"):  # it ended the process
        dlpack.to_dlpack(tensor)
    assert not hasattr(tensor, "__cuda_array_interface__")


def test_tied_tensors_are_known_by_their_address_at_which_nothing_is() -> None:
    tensor, other = (sharded(WHOLE, PLACEMENTS["rows"]) for _ in range(2))
    assert tensor.data_ptr() == tensor.detach().data_ptr() != other.data_ptr()
    assert tensor.data_ptr() > 2**48  # beyond what a process has
    undivided = sharded(WHOLE, None)
    assert ctypes.c_float.from_address(undivided.data_ptr()).value == WHOLE.flatten()[0]


def test_a_weight_is_not_offloaded() -> None:
    weight = torch.nn.Parameter(sharded(WHOLE, PLACEMENTS["rows"]))
    assert type(type(weight)(WHOLE)) is torch.nn.Parameter and type(weight)(WHOLE).requires_grad
    assert not type(weight)(WHOLE, requires_grad=False).requires_grad
    with pytest.raises(tpfx.ShardingError, match=r"\[4, 6, 3\] cannot be left on meta.*unshard\(model\)"):
        type(weight)(weight.to("meta"), requires_grad=True)
