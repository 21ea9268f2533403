"""What the pages name: small models in the place of large ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

WORDS = ("<pad>", "</s>", "A", "cat", "sat", "on", "the", "mat", "dog", "ran")
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
LLAMA = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
# The names of models that pages use: which model stands for each.
STAND_INS = {
    "facebook/opt-125m": ("opt", {**SIZES, "word_embed_proj_dim": 32, "ffn_dim": 64}),
    "HuggingFaceTB/SmolLM2-135M": ("llama", LLAMA),
    "Llama-3.1-8B": ("llama", LLAMA),
    "Llama-3.1-405B": ("llama", LLAMA),
}


def stand_ins(folder: Path) -> None:
    """Write a model, and a tokenizer of a few words, for each name."""
    import tokenizers
    import transformers

    words = {word: at for at, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    for name, (kind, sizes) in STAND_INS.items():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(kind, **sizes)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        fast.save_pretrained(folder / name)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models that pages name."""
    folder = tmp_path_factory.mktemp("models")
    stand_ins(folder)
    return folder
