"""Tiny, randomly initialised instances of the architectures that transformers ships.

`tiny(arch, task)` returns `(model, inputs)`: the architecture's own config with every size shrunk, and
random inputs for one forward pass. Weights are random, float32, and the same for every call; nothing is
downloaded. `heads` and `kv_heads` may be changed to make them divide, or not divide, a device count.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

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

# A field is set where the config class has it, to a size that makes a model of about 100k parameters.
_WIDTH, _HEAD, _FFN, _LAYERS, _EXPERTS, _POSITIONS = 64, 16, 128, 2, 4, 128
_SAME = [
    (
        _WIDTH,
        "hidden_size n_embd d_model dim n_embed model_dim embed_dim embedding_size word_embed_proj_dim "
        "word_embedding_size emb_dim lru_width",
    ),
    (
        _LAYERS,
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
        "num_decoder_layers num_block",
    ),
    (
        _HEAD,
        "head_dim d_kv attention_head_size qk_rope_head_dim qk_nope_head_dim v_head_dim mamba_d_state "
        "mamba_d_head mamba_head_dim ssm_state_size state_size chunk_size mamba_chunk_size "
        "linear_key_head_dim linear_value_head_dim sliding_window",
    ),
    (
        _FFN,
        "intermediate_size ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim ffn_hidden_size hidden_dim "
        "inner_dim",
    ),
    (_POSITIONS, "max_position_embeddings n_positions n_ctx max_sequence_length max_seq_len"),
    (_EXPERTS, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (
        0.0,
        "dropout attention_dropout activation_dropout hidden_dropout hidden_dropout_prob "
        "attention_probs_dropout_prob embd_pdrop attn_pdrop resid_pdrop dropout_rate layerdrop "
        "encoder_layerdrop decoder_layerdrop",
    ),
    (32, "q_lora_rank kv_lora_rank qk_head_dim image_size"),
    (8, "mamba_n_heads mamba_num_heads patch_size"),
    (1, "n_shared_experts n_group topk_group bos_token_id decoder_start_token_id"),
    (2, "num_experts_per_tok moe_topk moe_k mamba_expand linear_num_key_heads eos_token_id"),
    (4, "linear_num_value_heads"),
    (3, "num_channels num_labels"),
    (64, "moe_intermediate_size shared_expert_intermediate_size"),
    (256, "vocab_size"),
    (0, "pad_token_id"),
]
_SMALL = {name: value for value, names in _SAME for name in names.split()}
_HEADS = [
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
]
# What no general rule gives: fields of one architecture that depend on the others.
_OWN = {
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "nemotron": {"head_dim": _HEAD},
    "ministral": {"head_dim": _HEAD},
    "hunyuan_v1_dense": {"head_dim": _HEAD},
    "hunyuan_v1_moe": {"head_dim": _HEAD},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_group": 1, "n_group": 1},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16},
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2},
    "reformer": {"is_decoder": True},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
}
_PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types", "attention_types")


def archs(task: str) -> list[str]:
    """Every architecture name that transformers registers for a task."""
    return sorted(getattr(modeling_auto, TASKS[task][0]))


def _shrunk(config: transformers.PretrainedConfig, heads: int, kv_heads: int) -> dict[str, object]:
    known = set(config.to_dict()) | set(inspect.signature(type(config).__init__).parameters)
    small = {**_SMALL, **dict.fromkeys(_HEADS, heads), "num_key_value_heads": kv_heads}
    fields: dict[str, object] = {
        k: v for k, v in small.items() if k in known and getattr(config, k, None) is not None
    }
    if "hidden_size" in fields and "head_dim" not in fields:
        for name in ("hidden_size", "n_embd", "d_model", "embed_dim"):
            if name in fields:
                fields[name] = _HEAD * heads
    if getattr(config, "num_key_value_heads", None) == getattr(config, "num_attention_heads", 0):
        fields["num_key_value_heads"] = heads
    for name in _PER_LAYER:
        kinds = getattr(config, name, None)
        derived = isinstance(getattr(type(config), name, None), property)
        if not derived and isinstance(kinds, list) and kinds and isinstance(kinds[0], str):
            distinct = list(dict.fromkeys(kinds))
            fields[name] = (distinct * _LAYERS)[:_LAYERS]
    return fields


def tiny_config(arch: str, heads: int = 4, kv_heads: int = 2) -> transformers.PretrainedConfig:
    """The architecture's config, two layers deep and about 64 wide."""
    cls = CONFIG_MAPPING[arch]
    full = cls()
    fields = _shrunk(full, heads, kv_heads)
    for name in getattr(full, "sub_configs", None) or {}:
        sub = getattr(full, name, None)
        if isinstance(sub, transformers.PretrainedConfig):
            fields[name] = {**sub.to_dict(), **_shrunk(sub, heads, kv_heads)}
    return cls(**{**fields, **_OWN.get(arch, {})})


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
