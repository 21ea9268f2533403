"""Models with weights packed as llama.cpp packs them: divided by rows, and by columns between blocks."""

from __future__ import annotations

import copy

import pytest
import torch

import tpfx
from tests.support.gguf import SCALES, SIZES, packed
from tests.support.models import inputs, tiny
from tpfx.checkpoint.block_formats import FORMATS
from tpfx.checkpoint.packed_weight import PackedWeight
from tpfx.sharded_tensor.tensor import ShardedTensor

SAMPLE = [("Q4_0", 3, True, 1)]
ALL = [*SAMPLE, *((format, devices, False, 2) for format in SCALES for devices in (2, 3))]


@pytest.mark.parametrize(
    ("format", "devices", "tied", "layers"),
    [pytest.param(*one, marks=[] if one in SAMPLE else [pytest.mark.slow]) for one in ALL],
)
def test_a_llama_is_divided_and_writes_the_same_tokens(
    format: str, devices: int, tied: bool, layers: int
) -> None:
    plain = tiny("llama", **SIZES, tie_word_embeddings=tied, num_hidden_layers=layers)
    expected = packed(copy.deepcopy(plain), format)
    given, options = inputs(plain), {"max_new_tokens": 4, "do_sample": False}
    model = tpfx.compile(copy.deepcopy(expected), devices)
    plain = tpfx.compile(plain, devices)
    with torch.no_grad():
        plain(**given)
        torch.testing.assert_close(model(**given).logits, expected(**given).logits, rtol=1e-5, atol=1e-5)
    report = tpfx.report(model)
    if FORMATS[format].numbers == 32:  # blocks of 256 are wider than heads: three devices talk more
        assert [one.kind for one in report.collectives] == [
            one.kind for one in tpfx.report(plain).collectives
        ]
    assert torch.equal(model.generate(**given, **options), expected.generate(**given, **options))
    # Two blocks of 256 in a row, and four heads, are few for three devices.
    assert max(report.bytes_per_device) <= 1.2 * report.total_bytes / devices
    weight = model.lm_head.weight
    assert isinstance(weight, PackedWeight) and isinstance(weight.blocks, ShardedTensor)
    assert (weight is model.model.embed_tokens.weight) == tied
