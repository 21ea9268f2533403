"""The models that are measured: randomly initialised, of the shapes of small and large published ones.

Also runs in the peer's environment, so it needs nothing of tpfx and works with old versions of transformers.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCABULARY = 32000
POSITIONS = 1024
# What is the same for all: no token ends a sequence, so that `generate` makes as many as it is asked for.
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}


def config(
    name: str, layers: int = 12, hidden: int = 768, heads: int = 12, kv_heads: int | None = None
) -> transformers.PretrainedConfig:
    """A config of the model type `name`: "llama", "opt" or "gpt2".

    >>> config("llama", hidden=96, kv_heads=4).intermediate_size
    256
    """
    sizes: dict[str, dict[str, Any]] = {
        "llama": {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads or heads,
            "intermediate_size": hidden * 8 // 3,
            "max_position_embeddings": POSITIONS,
        },
        "opt": {
            "hidden_size": hidden,
            "word_embed_proj_dim": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "ffn_dim": 4 * hidden,
            "max_position_embeddings": POSITIONS,
        },
        "gpt2": {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": POSITIONS},
    }
    if name not in sizes:
        raise ValueError(f"no model {name!r} here; there are {', '.join(sizes)}")
    if kv_heads not in (None, heads) and name != "llama":
        raise ValueError(f"{name} has as many KV heads as heads; leave kv_heads out")
    return transformers.AutoConfig.for_model(name, vocab_size=VOCABULARY, **_TOKENS, **sizes[name])


def build(config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    """The model of a config in eval mode, float32, with the same weights on every call."""
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).float().eval()


def prompt(length: int, batch: int = 1) -> torch.Tensor:
    """Token ids `[batch, length]`."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)
