"""A small model of the same architecture, from a transformers config: sizes are shrunk, nothing else changes.

    small = shrunk(config)                           # two layers, about 64 wide, a vocabulary of 256
    model = AutoModelForCausalLM.from_config(small)

Sizes go by the names of fields, which architectures share; no architecture is named here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

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
    (8, "mamba_n_heads mamba_num_heads patch_size rotary_dim"),
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
# Lists with an entry for each layer.
_PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types", "attention_types")


def shrunk(config: Any, heads: int = 4, kv_heads: int = 2, own: Mapping[str, Any] | None = None) -> Any:
    """A small config of the same class.

    Args:
        config: a transformers config; it is left as it was.
        heads: how many attention heads the small one has.
        kv_heads: how many KV heads, where the config has fewer of those than of the others.
        own: fields that depend on others in a way that no general rule gives.

    >>> shrunk(LlamaConfig.from_pretrained("./Llama-3.1-405B")).hidden_size
    64
    """
    fields = _small_fields(config, heads, kv_heads)
    for name in getattr(config, "sub_configs", None) or {}:
        inner: Any = getattr(config, name, None)
        if hasattr(inner, "to_dict"):
            fields[name] = {**inner.to_dict(), **_small_fields(inner, heads, kv_heads)}
    return type(config)(**{**_said(config), **fields, **(own or {})})


def _said(config: Any) -> dict[str, Any]:
    """The fields that make a config what it is: not the defaults, nor what its class derives from others.

    A derived field would keep the size of the large model.
    """
    cls, whole = type(config), config.to_dict()
    default, inner = cls().to_dict(), getattr(config, "sub_configs", None) or {}
    said = {
        name: value
        for name, value in whole.items()
        if name not in inner and (name not in default or value != default[name])
    }
    for name in list(said):
        others = {key: value for key, value in said.items() if key != name}
        if _derived(cls, others, name, whole[name]):
            said = others
    return said


def _derived(cls: type, others: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether a field is what it is when only the others are given."""
    try:
        return bool(cls(**others).to_dict().get(name) == value)
    except Exception:  # each class checks in its own way that its fields fit together
        return False


def _small_fields(config: Any, heads: int, kv_heads: int) -> dict[str, Any]:
    known = set(config.to_dict()) | set(inspect.signature(type(config).__init__).parameters)
    small = {**_SMALL, **dict.fromkeys(_HEADS, heads), "num_key_value_heads": kv_heads}
    fields: dict[str, Any] = {
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
        if kinds and isinstance(kinds, list) and not isinstance(getattr(type(config), name, None), property):
            fields[name] = _fewer(kinds)
    return fields


def _fewer(kinds: list[Any]) -> list[Any]:
    """The kinds of the first layers, each that there is once; a pattern with how often it comes, once."""
    if isinstance(kinds[0], str):
        return (list(dict.fromkeys(kinds)) * _LAYERS)[:_LAYERS]
    return [[kinds[0][0][:_LAYERS], 1]] if isinstance(kinds[0], (list, tuple)) else kinds
