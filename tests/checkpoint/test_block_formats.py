"""The formats of llama.cpp, unpacked by ATen ops: the numbers are those of the package gguf, bit for bit."""

from __future__ import annotations

import hashlib

import pytest
import torch

from tests.support.gguf import SCALES, random_blocks
from tpfx.checkpoint.block_formats import FORMATS

# What the package gguf makes of two rows of three blocks of bytes that count up: the first of its numbers,
# and a digest of all.
GOLDEN: dict[str, tuple[list[float], str]] = {
    "F32": ([2.767334e35, 5.762827e-30, -3.433459e-18], "23c7b48100a14207"),
    "F16": ([0.1263428, 51872.0, -4.621094], "53c89fd6e97accc5"),
    "BF16": ([5.056791e-10, 2.764898e35, -1272.0], "f70d7854fc075322"),
    "Q8_0": ([0.0254941, 0.03659153, -0.02909327], "ca47732551205cc5"),
    "Q4_0": ([-0.01200485, 0.008003235, 0.02801132], "ec2dfd73a74dd594"),
    "Q4_1": ([0.03002548, -0.01399231, 0.006015778], "9505d3b38fed37d5"),
    "Q4_K": ([-0.001594186, -0.03569984, -0.02019727], "faaff9e50a202f63"),
    "Q5_K": ([0.0061571, -0.03569984, -0.003144443], "774190bc4e6ee6c9"),
    "Q6_K": ([-0.02865887, 0.03396606, 0.01167583], "c00e331148fce5b6"),
}


def counting_blocks(format: str) -> torch.Tensor:
    """uint8 [2, 3, bytes]: bytes that count up in steps of 37, with scales that are numbers."""
    size = FORMATS[format].bytes
    blocks = (torch.arange(6 * size) * 37 + 11).remainder(256).to(torch.uint8).view(2, 3, size)
    for at, scale in SCALES.get(format, {}).items():
        blocks[..., at : at + 2] = torch.tensor([scale]).half().view(torch.uint8)
    return blocks


def test_every_format_has_a_golden() -> None:
    assert GOLDEN.keys() == FORMATS.keys()


@pytest.mark.parametrize("format", FORMATS)
def test_the_numbers_are_those_of_the_golden(format: str) -> None:
    first, digest = GOLDEN[format]
    numbers = FORMATS[format].unpack(counting_blocks(format))
    assert numbers.shape == (2, 3 * FORMATS[format].numbers) and numbers.dtype == torch.float32
    assert numbers[0, : len(first)].tolist() == pytest.approx(first, rel=1e-6)
    assert hashlib.sha256(numbers.numpy().tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("format", FORMATS)
def test_the_numbers_are_those_of_the_package(format: str) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    kind = gguf.GGMLQuantizationType[format]
    assert gguf.GGML_QUANT_SIZES[kind] == (FORMATS[format].numbers, FORMATS[format].bytes)
    for blocks in (counting_blocks(format), *([random_blocks(format, 16, 4)] if format in SCALES else [])):
        expected = torch.from_numpy(gguf.quants.dequantize(blocks.flatten(-2).numpy(), kind))
        assert torch.equal(FORMATS[format].unpack(blocks), expected)
