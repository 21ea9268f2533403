"""What ops take to lie in memory in some way, lies so on every rank too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import tpfx
from tests.support.compare import largest_error

COMPILERS = ("native", "eager", "inductor")


class ImageAttention(nn.Module):
    """Heads of an image whose channels lie densely: of attention, a kernel is chosen that takes them to."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv2d(48, 48, 2, groups=48)
        self.into, self.out = nn.Conv2d(48, 72, 1, bias=False), nn.Conv2d(24, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = self.into(self.deep(nn.functional.pad(x, (1, 0, 1, 0))))
        batch, _, height, width = made.shape
        heads = made.reshape(batch, 3, 24, height * width).permute(0, 1, 3, 2)
        found = scaled_dot_product_attention(*heads.chunk(3, dim=3))
        return self.out(found.permute(0, 1, 3, 2).reshape(batch, 24, height, width))


@pytest.mark.parametrize("device_compiler", COMPILERS)
def test_attention_reads_rows_that_are_dense(device_compiler: str) -> None:
    torch.manual_seed(0)
    plain = ImageAttention().eval()
    x = torch.randn(2, 48, 7, 7).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = plain(x)
        model = tpfx.compile(plain, ["cpu"] * 2, device_compiler=device_compiler)
        assert largest_error(expected, model(x)) < 1e-5
