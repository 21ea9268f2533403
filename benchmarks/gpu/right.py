"""Whether a split model gives what the unsharded one gives. What is too far raises AssertionError."""

from __future__ import annotations

import contextlib
import copy
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import tpfx

from .tiny import Where, apart, furthest, gradients_of, noted, tiny

Found = dict[str, Any]
NEAR = {"float32": 1e-4, "bfloat16": 3e-2}


def kernel(name: str | None) -> AbstractContextManager[None]:
    """Have torch choose this kernel of attention."""
    if name is None or not torch.cuda.is_available():
        return contextlib.nullcontext()
    chosen: AbstractContextManager[None] = sdpa_kernel([getattr(SDPBackend, name)])
    return chosen


def forward(where: Where, arch: str, dtype: str) -> Found:
    """One call, three times."""
    model, inputs = tiny(arch, dtype, where.first)
    with torch.no_grad():
        right = model(**inputs).logits
        model = tpfx.compile(model, where.devices)
        error = max(apart(model(**inputs).logits, right) for _ in range(3))
    assert error < NEAR[dtype], f"relative error {error:.2e}"
    return {"error": f"{error:.1e}", **noted(model)}


def generate(where: Where, arch: str, device_compiler: str = "native") -> Found:
    """Greedy, beams, sampled with one seed, and one row: the same tokens."""
    model, inputs = tiny(arch, "float32", where.first)
    split = tpfx.compile(copy.deepcopy(model), where.devices, device_compiler=device_compiler)
    for wanted in ({}, {"num_beams": 3}, {"do_sample": True}):
        _same_tokens(model, split, inputs["input_ids"], wanted)
    _same_tokens(model, split, inputs["input_ids"][:1], {})
    return noted(split)


def recorded(where: Where, arch: str, device_compiler: str = "native") -> Found:
    """Tokens with a static cache, replayed as CUDA graphs; on another prompt too, and with beams."""
    model, inputs = tiny(arch, "float32", where.first)
    split = tpfx.compile(
        copy.deepcopy(model), where.devices, mode="reduce-overhead", device_compiler=device_compiler
    )
    static = {"cache_implementation": "static", "disable_compile": True}
    for ids in (inputs["input_ids"], inputs["input_ids"].flip(1)):
        _same_tokens(model, split, ids, static)
    _same_tokens(model, split, inputs["input_ids"], {**static, "num_beams": 3})
    return noted(split)


def _same_tokens(model: Any, split: Any, ids: torch.Tensor, wanted: Found) -> None:
    found = []
    for one in (split, model):
        torch.manual_seed(7)
        found.append(one.generate(ids, max_new_tokens=12, **{"do_sample": False, **wanted}))
    assert torch.equal(*found), f"{wanted}: {found[0].tolist()} instead of {found[1].tolist()}"


def train(where: Where, arch: str, dtype: str, autocast: str | None = None, fused: bool = False) -> Found:
    """Three steps of AdamW with clipping: losses and weights."""
    model, inputs = tiny(arch, dtype, where.first)
    split = tpfx.compile(copy.deepcopy(model), where.devices)
    right, found = (_losses(where, one, inputs, autocast, fused) for one in (model, split))
    error = max(abs(one - other) / abs(other) for one, other in zip(found, right, strict=True))
    assert error < NEAR["bfloat16" if autocast else dtype], f"losses {found} instead of {right}"
    weights = furthest(tpfx.full_state_dict(split), model.state_dict())
    return {"loss error": f"{error:.1e}", "weight error": f"{weights[0]:.1e}", **noted(split)}


def _losses(where: Where, model: Any, inputs: Found, autocast: str | None, fused: bool) -> list[float]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=(fused and where.on_gpu) or None)
    losses, kind = [], where.first.split(":")[0]
    dtype = getattr(torch, autocast or "bfloat16")
    for _ in range(3):
        optimizer.zero_grad()
        labels = inputs.get("decoder_input_ids", inputs["input_ids"])
        with torch.autocast(kind, dtype=dtype, enabled=autocast is not None):
            loss = model(**inputs, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss))
    return losses


def dropout(where: Where, arch: str) -> Found:
    """A training step with dropout everywhere: the unsharded masks, so the unsharded gradients."""
    dtype = "bfloat16" if where.on_gpu else "float32"
    model, inputs = tiny(arch, dtype, where.first, dropout=0.3)
    split = tpfx.compile(copy.deepcopy(model), where.devices)
    losses = []
    for one in (split.train(), model.train()):
        torch.manual_seed(3)
        loss = one(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        losses.append(float(loss))
    worst = furthest(gradients_of(split), gradients_of(model))
    assert worst[0] < 5e-2, f"the gradient of {worst[1]} is off by {worst[0]:.2e}"
    return {"losses": losses, "gradient error": f"{worst[0]:.1e} ({worst[1]})", **noted(split)}


class Attention(nn.Module):
    """Four heads, causal or with a bias that is trained."""

    def __init__(self, p: float, bias: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.p = nn.Linear(64, 192), nn.Linear(64, 64), p
        self.bias = nn.Parameter(torch.zeros(4, 16, 16)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, 16, 64]` to the same."""
        q, k, v = (part.unflatten(-1, (4, 16)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mask = None if self.bias is None else self.bias.expand(x.shape[0], -1, -1, -1)
        attention = nn.functional.scaled_dot_product_attention
        mixed = attention(q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=self.p)
        out: torch.Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


def attention(where: Where, name: str, dropout: float = 0.0, bias: bool = False) -> Found:
    """Gradients of one kernel of attention in bfloat16."""
    torch.manual_seed(1)
    model = Attention(dropout, bias).to(where.first, torch.bfloat16)
    split = tpfx.compile(copy.deepcopy(model), where.devices)
    for one in (split, model):
        torch.manual_seed(5)
        x = torch.randn(3, 16, 64, device=where.first, dtype=torch.bfloat16)
        with kernel(name):
            one(x).float().square().mean().backward()
    worst = furthest(gradients_of(split), gradients_of(model))
    assert worst[0] < NEAR["bfloat16"], f"the gradient of {worst[1]} is off by {worst[0]:.2e}"
    return {"gradient error": f"{worst[0]:.1e}", **noted(split)}


class Noisy(nn.Module):
    """Draws numbers without a tensor to go by."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, 64]` to the same."""
        out: torch.Tensor = self.two(torch.relu(self.one(x))) + torch.rand(64, device=x.device)
        return out


class Recurrent(nn.Module):
    """An LSTM and what reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, length, 16]` to `[batch, length, 64]`."""
        out: torch.Tensor = self.outer(self.inner(x)[0])
        return out


def _module(what: str) -> tuple[nn.Module, torch.Tensor]:
    conv = nn.Conv1d(16, 64, 3, padding=1)
    norm = [nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 8, 3)]
    if what == "batch_norm":
        return nn.Sequential(*norm), torch.randn(4, 3, 12, 12)
    if what == "weight_norm":
        normed = nn.utils.parametrizations.weight_norm(conv)
        return nn.Sequential(normed, nn.ReLU(), nn.Conv1d(64, 8, 1)), torch.randn(4, 16, 12)
    return (Recurrent(), torch.randn(4, 6, 16)) if what == "lstm" else (Noisy(), torch.randn(8, 64))


def module(where: Where, what: str) -> Found:
    """Small float32 modules whose ops are others on a GPU, in eval mode and in training."""
    torch.manual_seed(0)
    model, x = _module(what)
    model, x, found = model.to(where.first), x.to(where.first), {}
    split = tpfx.compile(copy.deepcopy(model), where.devices, example_inputs=(x,))
    for training in (False, True):
        results = []
        for one in (split.train(training), model.train(training)):
            torch.manual_seed(5)
            with torch.set_grad_enabled(training):
                results.append(one(x))
            if training:
                results[-1].sum().backward()
        error = apart(*results)
        assert error < 5e-3, f"relative error {error:.2e}"  # products in TF32
        found["training" if training else "eval"] = f"{error:.1e}"
    worst = furthest(gradients_of(split), gradients_of(model))
    return {**found, "gradient error": f"{worst[0]:.1e} ({worst[1]})", **noted(split)}


def ids_on_the_host(where: Where) -> Found:
    """Ids as a tokenizer gives them."""
    model, inputs = tiny("llama", "float32", "cpu")
    split = tpfx.compile(copy.deepcopy(model), where.devices)
    found = split.generate(inputs["input_ids"], max_new_tokens=3, do_sample=False).cpu()
    assert torch.equal(found, model.generate(inputs["input_ids"], max_new_tokens=3, do_sample=False))
    return noted(split)
