"""Tiny random models, and how near what a split one gives is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers

import tpfx


@dataclass(frozen=True)
class Where:
    """What cases run on.

    Attributes:
        devices: one for each rank.
        small: whether speed is that of tiny models: a rehearsal without a GPU.
    """

    devices: tuple[str, ...]
    small: bool = False

    @property
    def first(self) -> str:
        """Where the unsharded model is, and what goes in and comes out."""
        return self.devices[0]

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU."""
        return self.first.startswith("cuda")

    def wait(self) -> None:
        """Wait for the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize()


TOKENS = {"vocab_size": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}


def _sizes(arch: str, dropout: float) -> dict[str, Any]:
    llama = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 128,
        "attention_dropout": dropout,
    }
    dropouts = {"attn_pdrop": dropout, "resid_pdrop": dropout, "embd_pdrop": dropout}
    sizes: dict[str, dict[str, Any]] = {
        "llama": llama,
        "mixtral": {**llama, "num_local_experts": 4, "num_experts_per_tok": 2},
        "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 128, "n_positions": 128, **dropouts},
        "t5": {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            "dropout_rate": dropout,
            "decoder_start_token_id": 1,
        },
    }
    return sizes[arch]


def tiny(arch: str, dtype: str, device: str, dropout: float = 0.0) -> tuple[Any, dict[str, torch.Tensor]]:
    """A tiny model, the same at every call, and the arguments of one call."""
    config = transformers.AutoConfig.for_model(arch, **TOKENS, **_sizes(arch, dropout))
    kind = transformers.AutoModelForSeq2SeqLM if arch == "t5" else transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    model = kind.from_config(config, dtype=getattr(torch, dtype)).eval().to(device)
    torch.manual_seed(1)
    inputs = {"input_ids": torch.randint(2, 256, (2, 12), device=device)}
    if arch == "t5":
        inputs["decoder_input_ids"] = torch.randint(2, 256, (2, 6), device=device)
    return model, inputs


def apart(found: torch.Tensor, right: torch.Tensor) -> float:
    """How far a tensor is from the right one, relative to that."""
    found, right = found.detach().float().cpu(), right.detach().float().cpu()
    return float((found - right).norm() / right.norm().clamp_min(1e-30))


def furthest(found: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> tuple[float, str]:
    """The tensor that is furthest from the right one of its name."""
    return max((apart(value, right[name]), name) for name, value in found.items())


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Whole, by name."""
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {name: grad.full() if hasattr(grad, "full") else grad.clone() for name, grad in grads.items()}


def noted(model: torch.nn.Module) -> dict[str, Any]:
    """What a report says of a split model, where it says anything, and the kernels of attention."""
    report = tpfx.report(model)
    targets = [] if report.parallel is None else [str(node.target) for node in report.parallel.graph.nodes]
    kernels = {one.split("_dot_product_")[-1].split(".")[0] for one in targets if "_dot_product_" in one}
    found = {
        "graphs": report.graphs,
        "attention": sorted(kernels),
        "whole": report.whole_ops,
        "calls whole": report.whole_calls,
        "batch by batch": report.batch_by_batch,
        "recorded": report.recordings,
        "not recorded": report.not_recorded,
    }
    return {name: value for name, value in found.items() if value}
