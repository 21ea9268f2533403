"""The architectures that `peers` tries, tiny and random, and what a behaviour is given of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import transformers as tf

import tpfx

VOCABULARY, PATIENCE = 128, 60
_NO_STOP = {"eos_token_id": None, "pad_token_id": 0}
_WIDE = {"vocab_size": VOCABULARY, "initializer_range": 0.15}
_LLAMA = {
    **_WIDE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "max_position_embeddings": 128,
    **_NO_STOP,
}
_CLIP = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 32,
}


@dataclass(frozen=True)
class Architecture:
    """How an architecture is made.

    Attributes:
        config: its config's class, with sizes.
        head: the class that generates or classifies.
        base: the class without a head.
        kinds: what it is: "decoder", "pair" (of encoder and decoder) or "encoder" of texts, "image",
            "speech", "mixed" (texts with images); what it has: "generates", "cache", "positions".
        classifier: the class that classifies sequences.
    """

    config: Callable[..., Any]
    head: str
    base: str
    kinds: frozenset[str]
    classifier: str = ""


def _decoder(config: str, sizes: dict[str, Any], names: str, *kinds: str) -> Architecture:
    head, classifier = f"{names}LMHeadModel" if names == "GPT2" else f"{names}ForCausalLM", ""
    classifier = "" if names == "Mamba" else f"{names}ForSequenceClassification"
    made = partial(getattr(tf, config), **sizes)
    return Architecture(made, head, f"{names}Model", frozenset({"decoder", "generates", *kinds}), classifier)


def _llava(**more: Any) -> Any:
    return tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**_CLIP, initializer_range=0.15),
        text_config=tf.LlamaConfig(**_LLAMA),
        image_token_id=VOCABULARY - 1,
        **{**_NO_STOP, **more},
    )


_PAIR = {
    **_WIDE,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}
_BERT = {
    **_WIDE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_MIXTRAL = {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
_GPT2 = {**_WIDE, **_NO_STOP, "n_embd": 64, "n_inner": 128, "n_layer": 2, "n_head": 4, "n_positions": 128}
_MAMBA = {**_WIDE, **_NO_STOP, "hidden_size": 64, "state_size": 8, "num_hidden_layers": 2}
_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY}
_BART = {
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_WHISPER = {"num_mel_bins": 16, "max_source_positions": 30, "max_target_positions": 64, "bos_token_id": 1}

ARCHITECTURES = {
    "llama": _decoder("LlamaConfig", _LLAMA, "Llama", "cache", "positions"),
    "gpt2": _decoder("GPT2Config", _GPT2, "GPT2", "cache", "positions"),
    "t5": Architecture(
        partial(tf.T5Config, **_T5, decoder_start_token_id=0, eos_token_id=None, pad_token_id=0),
        "T5ForConditionalGeneration",
        "T5Model",
        frozenset({"pair", "generates", "cache"}),
        "T5ForSequenceClassification",
    ),
    "bert": Architecture(
        partial(tf.BertConfig, **_BERT),
        "BertForMaskedLM",
        "BertModel",
        frozenset({"encoder"}),
        "BertForSequenceClassification",
    ),
    "bart": Architecture(
        partial(tf.BartConfig, **_PAIR, **_BART, eos_token_id=None, pad_token_id=1),
        "BartForConditionalGeneration",
        "BartModel",
        frozenset({"pair", "generates", "cache"}),
    ),
    "whisper": Architecture(
        partial(tf.WhisperConfig, **_PAIR, **_WHISPER, decoder_start_token_id=3, **_NO_STOP),
        "WhisperForConditionalGeneration",
        "WhisperModel",
        frozenset({"speech", "generates", "cache"}),
    ),
    "llava": Architecture(
        _llava,
        "LlavaForConditionalGeneration",
        "LlavaModel",
        frozenset({"decoder", "mixed", "generates", "cache"}),
    ),
    "vit": Architecture(
        partial(
            tf.ViTConfig, **{k: v for k, v in _CLIP.items() if k != "projection_dim"}, initializer_range=0.15
        ),
        "ViTForImageClassification",
        "ViTModel",
        frozenset({"image"}),
        "ViTForImageClassification",
    ),
    "mamba": _decoder("MambaConfig", _MAMBA, "Mamba"),
    "mixtral": _decoder("MixtralConfig", _MIXTRAL, "Mixtral", "cache", "positions"),
    "phi3": _decoder("Phi3Config", _LLAMA, "Phi3", "cache", "positions"),
}


@dataclass
class Trial:
    """One architecture, undivided or split: behaviours are functions of it.

    Attributes:
        arch: its name.
        devices: how many it is split over; 0: it stays undivided.
        made: models that behaviours share, by class and attention.
        fresh_ones: the split models of one behaviour alone.
    """

    arch: str
    devices: int = 0
    made: dict[tuple[str, str], Any] = field(default_factory=dict)
    fresh_ones: list[Any] = field(default_factory=list)

    @property
    def of(self) -> Architecture:
        """How it is made."""
        return ARCHITECTURES[self.arch]

    def plain(self, name: str = "", attention: str = "", **config: Any) -> Any:
        """A new model in eval mode, undivided: the head's, or the class of that name."""
        torch.manual_seed(0)
        cls = getattr(tf, name or self.of.head)
        settings = self.of.config(**config)
        return cls._from_config(settings, attn_implementation=attention or None).eval()

    def ready(self, model: Any) -> Any:
        """A model, split where this trial splits."""
        if not self.devices:
            return model
        self.fresh_ones.append(tpfx.compile(model, ["cpu"] * self.devices, timeout=PATIENCE))
        return self.fresh_ones[-1]

    def fresh(self, name: str = "", attention: str = "", **config: Any) -> Any:
        """A new model, split where this trial splits."""
        return self.ready(self.plain(name, attention, **config))

    def shared(self, name: str = "", attention: str = "") -> Any:
        """The model that all behaviours share which leave it as it is."""
        key = (name, attention)
        if key not in self.made:
            self.made[key] = self.fresh(name, attention)
            del self.fresh_ones[-1:]
        return self.made[key]

    def ids(self, rows: int = 2, length: int = 7, seed: int = 0) -> torch.Tensor:
        """Random tokens `[rows, length]`."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(5, VOCABULARY - 5, (rows, length), generator=generator)

    def inputs(self, rows: int = 2, length: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
        """What `model(**inputs)` takes."""
        ids, generator = self.ids(rows, length, seed), torch.Generator().manual_seed(seed + 1)
        kinds = self.of.kinds
        if "image" in kinds:
            return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}
        if "speech" in kinds:
            features = torch.randn(rows, 16, 60, generator=generator)
            return {"input_features": features, "decoder_input_ids": ids}
        if "mixed" in kinds:
            ids = torch.cat([ids[:, :1], torch.full((rows, 4), VOCABULARY - 1), ids[:, 1:]], 1)
            return {"input_ids": ids, "pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}
        if "pair" in kinds:
            return {"input_ids": ids, "decoder_input_ids": self.ids(rows, 5, seed + 7)}
        return {"input_ids": ids}

    def prompt(self, rows: int = 2, length: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
        """What `model.generate(**prompt)` takes."""
        given = self.inputs(rows, length, seed)
        given.pop("decoder_input_ids", None)
        return given


Behaviour = Callable[[Trial], Any]
BEHAVIOURS: dict[str, tuple[Behaviour, tuple[str, ...]]] = {}  # by name, with the kinds that have it


def of(*kinds: str) -> Callable[[Behaviour], Behaviour]:
    """Register a behaviour of architectures of some kinds, or by name: what it returns is compared."""

    def register(behaviour: Behaviour) -> Behaviour:
        BEHAVIOURS[behaviour.__name__.replace("_", " ")] = behaviour, kinds
        return behaviour

    return register
