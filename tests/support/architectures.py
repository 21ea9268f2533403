"""Tiny, randomly initialised instances of the architectures that transformers ships.

`tiny(arch, task)` returns `(model, inputs)`: the architecture's own config with every size shrunk, and
random inputs for one forward pass. Weights are random, float32, and the same for every call; nothing is
downloaded. `heads` and `kv_heads` may be changed to make them divide, or not divide, a device count.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tpfx.verify.shrink_config import shrunk

TASKS = {
    "causal": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "AutoModelForCausalLM"),
    "masked": ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", "AutoModelForMaskedLM"),
    "seq2seq": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "AutoModelForSeq2SeqLM"),
    "image": ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", "AutoModelForImageClassification"),
}

# The architectures that the sweep goes through, by task.
LISTED: dict[str, list[str]] = {}
for _line in (Path(__file__).parent / "architectures.txt").read_text().splitlines():
    _task, _arch = _line.split()
    LISTED.setdefault(_task, []).append(_arch)

# What no general rule gives: fields of one architecture that depend on the others.
_OWN = {
    "nemotron": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_group": 1, "n_group": 1},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16},
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2},
    "reformer": {"is_decoder": True},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
}


def archs(task: str) -> list[str]:
    """Every architecture name that transformers registers for a task."""
    return sorted(getattr(modeling_auto, TASKS[task][0]))


def tiny_config(arch: str, heads: int = 4, kv_heads: int = 2) -> transformers.PretrainedConfig:
    """The architecture's config, two layers deep and about 64 wide."""
    return shrunk(CONFIG_MAPPING[arch](), heads, kv_heads, _OWN.get(arch))


def tiny(
    arch: str, task: str = "causal", *, heads: int = 4, kv_heads: int = 2, batch: int = 2, length: int = 12
) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A tiny model in eval mode and inputs for `model(**inputs)`."""
    torch.manual_seed(0)
    config = tiny_config(arch, heads, kv_heads)
    model = getattr(transformers, TASKS[task][1]).from_config(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if not torch.isfinite(parameter).all() or not parameter.any():
                parameter.normal_(0, 0.02)
    ids = torch.randint(3, 250, (batch, length))
    if task == "image":
        size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        return model, {"pixel_values": torch.randn(batch, config.num_channels, size, size)}
    if task == "seq2seq":
        return model, {"input_ids": ids, "decoder_input_ids": ids.flip(1)}
    return model, {"input_ids": ids}


def t5() -> transformers.PreTrainedModel:
    """A tiny T5 that generates, from a start token on, and without an end."""
    model, _ = tiny("t5", "seq2seq")
    model.generation_config.update(decoder_start_token_id=0, pad_token_id=0, eos_token_id=None)
    return model
