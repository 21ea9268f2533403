"""A weight that is kept in blocks: ops unpack it."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F

import tpfx
from tests.support.gguf import SCALES, random_blocks
from tpfx.checkpoint.block_formats import FORMATS
from tpfx.checkpoint.packed_weight import PackedWeight

FORMAT = "Q4_0"


def weight(seed: int = 0, format: str = FORMAT) -> PackedWeight:
    return PackedWeight(random_blocks(format, 8, 2, seed=seed), format, torch.float32)


def whole(packed: PackedWeight) -> torch.Tensor:
    return FORMATS[packed.format].unpack(packed.blocks)


@pytest.mark.parametrize("format", SCALES)
def test_ops_take_its_numbers(format: str) -> None:
    packed = weight(format=format)
    plain, ids = whole(packed), torch.tensor([[3, 0], [7, 3]])
    x = torch.randn(3, plain.shape[1], generator=torch.Generator().manual_seed(1))
    assert packed.shape == plain.shape and packed.dtype == torch.float32
    assert torch.equal(packed.dequantize(), plain)
    assert torch.equal(F.embedding(ids, packed), F.embedding(ids, plain))
    torch.testing.assert_close(F.linear(x, packed), F.linear(x, plain))
    torch.testing.assert_close(x @ packed.T + packed[0, 0], x @ plain.T + plain[0, 0])


def test_a_gradient_flows_through_to_what_it_is_applied_to() -> None:
    packed, x = weight(), torch.randn(3, 64, requires_grad=True)
    F.linear(x, packed).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, whole(packed).sum(0).expand(3, -1))


def test_a_dtype_is_that_of_what_is_calculated() -> None:
    packed = weight().to(torch.bfloat16)
    assert isinstance(packed, PackedWeight) and packed.dtype == torch.bfloat16
    assert torch.equal(packed.blocks, weight().blocks)
    assert torch.equal(packed.dequantize().bfloat16(), whole(packed).bfloat16())


def test_copies_and_files_keep_it_packed() -> None:
    packed, other = weight(), weight(seed=1)
    twin = copy.deepcopy(packed)
    twin.copy_(other)
    assert torch.equal(twin.blocks, other.blocks) and torch.equal(packed.blocks, weight().blocks)
    file = io.BytesIO()
    torch.save(packed, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    assert isinstance(saved, PackedWeight) and torch.equal(saved.blocks, packed.blocks)
    assert repr(saved) == "PackedWeight([8, 64], Q4_0, torch.float32, device=cpu)"


def test_what_writes_numbers_into_it_is_refused() -> None:
    for write in (
        lambda: weight().copy_(torch.zeros(8, 64)),
        lambda: weight().copy_(weight(format="Q8_0")),
        lambda: weight().normal_(),
        lambda: weight().zero_(),
    ):
        with pytest.raises(tpfx.ModelError, match=r"write into a weight \[8, 64\] that is packed as Q4_0"):
            write()
