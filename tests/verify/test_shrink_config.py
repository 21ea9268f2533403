"""Small configs say what the large ones do, but for sizes, and make models that run."""

from __future__ import annotations

import pytest
import torch
import transformers

from tpfx.verify.shrink_config import shrunk

LARGE = {
    "a llama of 8 billion": transformers.LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        hidden_act="gelu",
        tie_word_embeddings=True,
    ),
    "gpt2-medium": transformers.GPT2Config(
        n_embd=1024, n_layer=24, n_head=16, scale_attn_by_inverse_layer_idx=True
    ),
    "gpt-j": transformers.GPTJConfig(),
    "gpt-neo": transformers.GPTNeoConfig(),
    "all heads": transformers.Qwen2Config(num_attention_heads=16, num_key_value_heads=16, hidden_act="relu"),
    "windows": transformers.Gemma3TextConfig(num_hidden_layers=34, hidden_size=2560),
}


@pytest.mark.parametrize("name", LARGE)
def test_it_is_small_and_runs(name: str) -> None:
    large = LARGE[name]
    before = large.to_dict()
    small = shrunk(large)
    assert type(small) is type(large)
    assert large.to_dict() == before
    model = transformers.AutoModelForCausalLM.from_config(small)
    assert sum(weight.numel() for weight in model.parameters()) < 300_000
    with torch.no_grad():
        assert model(torch.arange(3, 23).view(2, 10)).logits.shape == (2, 10, 256)


def test_what_is_no_size_stays() -> None:
    small = shrunk(LARGE["a llama of 8 billion"], heads=8, kv_heads=4)
    assert (small.num_attention_heads, small.num_key_value_heads, small.hidden_size) == (8, 4, 64)
    assert small.hidden_act == "gelu" and small.tie_word_embeddings
    assert small.rope_parameters["rope_type"] == "llama3"
    assert shrunk(LARGE["gpt2-medium"]).scale_attn_by_inverse_layer_idx
    assert shrunk(LARGE["all heads"]).num_key_value_heads == 4
    assert shrunk(LARGE["windows"]).layer_types == ["sliding_attention", "full_attention"]


def test_own_fields_win() -> None:
    assert shrunk(transformers.GPT2Config(), own={"n_layer": 1}).n_layer == 1
