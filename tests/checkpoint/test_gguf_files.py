"""GGUF files: each rank reads its slices, and keeps them packed, or dequantizes them."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
import transformers

import tpfx
from tests.support.gguf import SIZES, random_blocks, write
from tests.support.models import inputs, tiny
from tpfx.checkpoint import gguf_files, safetensors_files
from tpfx.checkpoint.block_formats import FORMATS
from tpfx.checkpoint.gguf_files import Blocks, InBlocks
from tpfx.checkpoint.packed_weight import PackedWeight
from tpfx.kernels.slices import take

needs_gguf = pytest.mark.skipif(
    "not __import__('importlib').util.find_spec('gguf')", reason="gguf is not installed"
)
CPUS = ["cpu"] * 3


def hollow(model: Any) -> Any:
    with accelerate.init_empty_weights():
        return transformers.AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    "dims",
    [
        (),
        ((0, (((0, 1), (4, 6)), ((1, 4),))),),
        ((1, (((0, 32), (64, 96)), ((32, 64),))),),
        ((1, (((0, 7), (40, 90)), ((7, 40), (90, 96)))),),
        ((0, (((0, 6),), ())),),
    ],
)
@pytest.mark.parametrize("rows", [None, np.array([3, 0, 5, 1, 2, 4])])
def test_slices_are_parts_of_the_whole(
    dims: Any, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = random_blocks("Q4_0", 6, 3)
    (tmp_path / "a").write_bytes(bytes(96) + blocks.numpy().tobytes())
    tensor = InBlocks(tmp_path / "a", "a", (6, 96), lambda size: None, "Q4_0", 96, rows)
    moved = blocks if rows is None else blocks[torch.from_numpy(rows)]
    whole = FORMATS["Q4_0"].unpack(moved)
    for piece in (1, safetensors_files.PIECE):
        monkeypatch.setattr(safetensors_files, "PIECE", piece)
        for rank in (0, 1):
            shard = torch.full_like(take(whole, dims, rank), 9.0)
            tensor.read(shard, dims, rank)
            assert torch.equal(shard, take(whole, dims, rank))
    stored = Blocks(tensor.file, "a", tensor.blocks_shape, lambda size: None, tensor)
    read = torch.zeros_like(blocks)
    stored.read(read, (), 0)
    assert torch.equal(read, moved)


def test_without_the_package_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(
        tpfx.ModelError, match=r"package gguf, which is not installed: pip install 'tpfx\[gguf\]'"
    ):
        tpfx.load(hollow(tiny("llama")), tmp_path / "model.gguf", CPUS)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    model = hollow(tiny("llama"))
    with pytest.raises(tpfx.ModelError, match=r"there is no model\.gguf in .*: name a GGUF file"):
        tpfx.load(model, tmp_path / "model.gguf", CPUS)
    (tmp_path / "model-00001-of-00003.gguf").touch()
    with pytest.raises(
        tpfx.ModelError, match=r"no model-00002-of-00003\.gguf, model-00003-of-00003\.gguf in"
    ):
        tpfx.load(model, tmp_path / "model-00001-of-00003.gguf", CPUS)


def requantized(model: Any, type_name: str) -> Any:
    """The same model with the numbers that its file has."""
    import gguf

    made, kind = copy.deepcopy(model), gguf.GGMLQuantizationType[type_name]
    for value in made.parameters():
        if value.dim() > 1:
            packed = gguf.quants.quantize(value.detach().numpy(), kind)
            value.data = torch.from_numpy(gguf.quants.dequantize(packed, kind)).view(value.shape)
    return made


LOADED = [("Q4_0", False), ("Q8_0", True)]


@needs_gguf
@pytest.mark.parametrize(
    ("type_name", "dequantize"),
    [
        pytest.param(name, dequantize, marks=[] if (name, dequantize) in LOADED else [pytest.mark.slow])
        for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
        for dequantize in (False, True)
    ],
)
def test_each_rank_reads_its_slices(
    type_name: str, dequantize: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes read are those held, in pieces of a bounded size; values are the package's own."""
    reference = tiny("llama", **SIZES, num_hidden_layers=1)
    write(reference, tmp_path / "model.gguf", type_name)
    expected = requantized(reference, type_name)
    told, read, pieces, blocks = [], [], [], InBlocks.blocks
    monkeypatch.setattr(safetensors_files, "PIECE", 1 << 14)
    monkeypatch.setattr(gguf_files.InBlocks, "blocks", lambda *given: noted(blocks(*given), pieces))
    monkeypatch.setattr(safetensors_files.Reading, "expect", lambda self, size: told.append(size))
    monkeypatch.setattr(safetensors_files.Reading, "tell", lambda self, size: read.append(size))
    model = tpfx.load(hollow(reference), tmp_path / "model.gguf", CPUS, dequantize=dequantize)
    assert max(pieces) <= 1 << 14 and told == [sum(read)]
    assert sum(read) <= sum(tpfx.report(model).bytes_per_device)
    full = tpfx.full_state_dict(model)
    for name, value in expected.state_dict().items():
        assert torch.equal(full[name].dequantize(), value), name
        packed = value.dim() > 1 and type_name.startswith("Q") and not dequantize
        assert isinstance(full[name], PackedWeight) == packed
    given = inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(model(**given).logits, expected(**given).logits)


def noted(blocks: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    pieces.append(blocks.nbytes)
    return blocks


@needs_gguf
def test_what_transformers_transposes_is_dequantized_with_a_warning(tmp_path: Path) -> None:
    reference = tiny("gpt2", num_hidden_layers=1)
    write(reference, tmp_path / "model.gguf", "Q8_0", "gpt2")
    with pytest.warns(UserWarning, match=r"4 weights of 32768 numbers are dequantized .*: blk\.0\.attn_qkv"):
        model = tpfx.load(hollow(reference), tmp_path / "model.gguf", CPUS)
    full, state = tpfx.full_state_dict(model), reference.state_dict()
    assert isinstance(full["transformer.wte.weight"], PackedWeight)
    for name, value in state.items():
        torch.testing.assert_close(full[name].dequantize(), value, rtol=0, atol=0.02)


def problems(tmp_path: Path) -> dict[str, tuple[Any, str]]:
    """Files that do not fit a tiny Llama of 64 columns."""
    made, weight = {}, torch.zeros(64, 64)
    for name, kind, others in (
        ("missing", "Q8_0", {"blk.1.attn_v.weight": None}),
        ("shape", "Q8_0", {"blk.1.attn_v.weight": weight}),
        ("type", "Q5_0", {}),
    ):
        made[name] = tmp_path / f"{name}.gguf"
        write(tiny("llama"), made[name], kind, **others)
    made["heads"] = tmp_path / "heads.gguf"
    write(tiny("llama", num_attention_heads=2, head_dim=32, num_key_value_heads=1), made["heads"], "Q8_0")
    made["broken"] = tmp_path / "broken.gguf"
    made["broken"].write_bytes(made["type"].read_bytes()[:1000])
    made["other"] = tmp_path / "other.gguf"
    made["other"].write_bytes(b"no GGUF file")
    says = {
        "missing": r"1 of 21 weights are not in .*: model\.layers\.1\.self_attn\.v_proj\.weight",
        "shape": r"v_proj\.weight is \[32, 64\] in the model and \[64, 64\] in",
        "type": r"in .*type\.gguf is of type Q5_0; tpfx reads F32, F16, .*llama-quantize",
        "heads": r"attention\.head_count is 2 in .*, and num_attention_heads is 4 in the model",
        "broken": r"broken\.gguf is no GGUF file that can be read",
        "other": r"other\.gguf is no GGUF file that can be read: .*fetch it anew",
    }
    return {name: (made[name], words) for name, words in says.items()}


@needs_gguf
def test_files_that_do_not_fit(tmp_path: Path) -> None:
    for path, message in problems(tmp_path).values():
        model = hollow(tiny("llama"))
        before = dict(model.named_parameters())
        with pytest.raises(tpfx.ModelError, match=message):
            tpfx.load(model, path, CPUS)
        assert all(before[name] is value for name, value in model.named_parameters())


@needs_gguf
def test_what_fails_later_leaves_the_model_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tiny("llama"), tmp_path / "model.gguf", "Q8_0")
    model = hollow(tiny("llama"))

    def fail(self: Any, *given: Any) -> None:
        raise OSError("input/output error")

    monkeypatch.setattr(Blocks, "piece", fail)
    with pytest.raises(OSError, match="input/output error"):
        tpfx.load(model, tmp_path / "model.gguf", CPUS)
    assert all(type(value) is torch.nn.Parameter and value.is_meta for value in model.parameters())
