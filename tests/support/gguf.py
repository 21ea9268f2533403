"""Weights packed as llama.cpp packs them: of random blocks, and GGUF files of tiny Llamas.

model = packed(tiny("llama", **SIZES), "Q4_0")        # needs no package
write(model, tmp_path / "model.gguf", "Q4_0")         # needs gguf
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from tpfx.checkpoint.block_formats import FORMATS
from tpfx.checkpoint.packed_weight import PackedWeight

M = TypeVar("M", bound=nn.Module)

# Rows of two blocks of 256 numbers.
SIZES = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 2}

# Where the scales and minima of each format are, numbers of 16 bits, and how large they may be.
SCALES: dict[str, dict[int, float]] = {
    "Q8_0": {0: 3e-4},
    "Q4_0": {0: 4e-3},
    "Q4_1": {0: 4e-3, 2: -3e-2},
    "Q4_K": {0: 1e-4, 2: 7e-4},
    "Q5_K": {0: 5e-5, 2: 7e-4},
    "Q6_K": {208: 2e-5},
}


# What llama.cpp's converter transposes of GPT-2's.
TRANSPOSED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")


def random_blocks(format: str, *shape: int, seed: int = 0) -> torch.Tensor:
    """Random blocks, uint8 `[*shape, bytes]`, whose numbers are as small as those of weights."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(256, (*shape, FORMATS[format].bytes), dtype=torch.uint8, generator=generator)
    for at, size in SCALES[format].items():
        scale = (torch.rand(*shape, 1, generator=generator) + 0.5) * size
        blocks[..., at : at + 2] = scale.half().view(torch.uint8)
    return blocks


def packed(model: M, format: str) -> M:
    """The model with the weights of linear layers and embeddings packed, in place; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            weight = module.weight
            if id(weight) not in made:
                rows, columns = weight.shape
                blocks = random_blocks(format, rows, columns // FORMATS[format].numbers, seed=len(made))
                made[id(weight)] = nn.Parameter(PackedWeight(blocks, format, weight.dtype), False)
            module.weight = made[id(weight)]
    return model


def write(model: Any, path: Path, type_name: str, architecture: str = "llama", **others: Any) -> None:
    """A GGUF file of a tiny model, its matrices of a type, their rows as llama.cpp's converter has them.

    `others` are tensors in the place of the model's, by the file's names for them; None leaves one out.
    """
    import gguf

    config, kind = model.config, gguf.GGMLQuantizationType[type_name]
    file = gguf.GGUFWriter(path, architecture)
    file.add_block_count(config.num_hidden_layers)
    file.add_head_count(config.num_attention_heads)
    file.add_embedding_length(config.hidden_size)
    file.add_context_length(config.max_position_embeddings)
    if architecture == "llama":
        file.add_head_count_kv(config.num_key_value_heads)
        file.add_feed_forward_length(config.intermediate_size)
        file.add_layer_norm_rms_eps(config.rms_norm_eps)
        file.add_vocab_size(config.vocab_size)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, value in {**_named(model, names), **others}.items():
        if value is not None:
            plain = value.dim() == 1 or type_name == "F32"
            numbers = value.float().numpy()
            data = numbers if plain else gguf.quants.quantize(numbers, kind)
            file.add_tensor(name, data, raw_dtype=None if plain else kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def _named(model: Any, names: Any) -> dict[str, torch.Tensor]:
    """The model's tensors by a file's names, as llama.cpp's converter lays out a Llama's and a GPT-2's."""
    found, heads = {}, {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    for name, value in model.state_dict().items():
        base, _, last = name.rpartition(".")
        key = names.get_name(base)
        kind = key.rpartition(".")[2]
        if kind in heads and model.config.model_type == "llama":
            count = getattr(model.config, heads[kind])
            value = value.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
        if kind in TRANSPOSED and model.config.model_type == "gpt2" and last == "weight":
            value = value.T
        found[f"{key}.{last}"] = value.contiguous()
    return found
