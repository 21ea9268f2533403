"""Tiny, randomly initialised transformers models, one family of graphs each.

For example:

    model = tiny("llama", num_key_value_heads=3, num_attention_heads=6, hidden_size=96)
    model(**inputs(model)).logits
    model.generate(**inputs(model), max_new_tokens=8)
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 256

_LLAMA = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
}
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 128, "n_positions": 128}
_NEOX = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
}
_FALCON = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_hidden_size": 128,
    "max_position_embeddings": 128,
}

# name: (model type, what its config says beyond the vocabulary and the special tokens)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": (
        "opt",
        {
            "hidden_size": 64,
            "word_embed_proj_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 128,
            "max_position_embeddings": 128,
        },
    ),
    "gpt2": ("gpt2", _GPT2),
    # Each of its layers has a table of all positions, which every rank needs.
    "gptj": ("gptj", {**_GPT2, "n_positions": 32, "rotary_dim": 8}),
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "gpt_neox": ("gpt_neox", _NEOX),
    "gpt_neox_sequential": ("gpt_neox", {**_NEOX, "use_parallel_residual": False}),
    "falcon": ("falcon", {**_FALCON, "multi_query": True, "new_decoder_architecture": False}),
    "falcon_new": ("falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "llama": ("llama", _LLAMA),
    "phi3": ("phi3", _LLAMA),
    "qwen3": ("qwen3", {**_LLAMA, "head_dim": 16}),
    "mixtral": ("mixtral", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
}


def tiny(name: str, **overrides: Any) -> transformers.PreTrainedModel:
    """A model of `MODELS` in eval mode, float32, with the same weights on every call.

    `overrides` are fields of its config, by any of their names. No token ends a sequence: `generate` goes on
    until `max_new_tokens`.
    """
    model_type, sizes = MODELS[name]
    own_names = CONFIG_MAPPING[model_type].attribute_map
    overrides = {own_names.get(field, field): value for field, value in overrides.items()}
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    config = transformers.AutoConfig.for_model(model_type, **{**tokens, **sizes, **overrides})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases of zero and norms of one would hide a bias that is added twice
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def without_weights(name: str, **overrides: Any) -> transformers.PreTrainedModel:
    """The same model on the meta device."""
    config = tiny(name, **overrides).config
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def inputs(model: transformers.PreTrainedModel, batch: int = 2, length: int = 12) -> dict[str, torch.Tensor]:
    """Random token ids `[batch, length]` for `model(**inputs)`, none of them padding, and a mask of ones."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, model.config.vocab_size, (batch, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
