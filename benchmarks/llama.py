"""A Llama in plain PyTorch, whose parameters have the names of Llama checkpoints.

    with torch.device("meta"):
        model = Llama(Sizes(vocabulary=32000, hidden=4096, inner=11008, heads=32, layers=32))
    model(ids)                                      # logits

It is what researchers have who wrote their model themselves: one module, and no library around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu


@dataclass(frozen=True)
class Sizes:
    """What a Llama's config says; every head has keys and values of its own."""

    vocabulary: int
    hidden: int
    inner: int
    heads: int
    layers: int
    epsilon: float = 1e-6
    theta: float = 10000.0


def turns(length: int, sizes: Sizes, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine `[position, head size]` of the angle by which each position turns queries and keys."""
    half = sizes.hidden // sizes.heads // 2
    speeds = sizes.theta ** (-torch.arange(half, device=device) / half)
    angles = (torch.arange(length, device=device)[:, None] * speeds).repeat(1, 2)
    return angles.cos(), angles.sin()


def turned(x: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys `[batch, head, position, size]`, turned."""
    first, second = x.chunk(2, -1)
    return x * by[0] + torch.cat([-second, first], -1) * by[1]


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(sizes.hidden, sizes.hidden, bias=False))

    def forward(self, x: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
        """`[batch, position, hidden]` to the same."""
        query, key, value = self.heads(self.q_proj(x)), self.heads(self.k_proj(x)), self.heads(self.v_proj(x))
        mixed = scaled_dot_product_attention(turned(query, by), turned(key, by), value, is_causal=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def heads(self, x: Tensor) -> Tensor:
        """`[batch, position, hidden]` to `[batch, head, position, size]`."""
        return x.unflatten(-1, (self.sizes.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """A gated layer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.hidden, sizes.inner, bias=False)
        self.up_proj = nn.Linear(sizes.hidden, sizes.inner, bias=False)
        self.down_proj = nn.Linear(sizes.inner, sizes.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, position, hidden]` to the same."""
        out: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Attention and a gated layer, each after a norm, each added."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(sizes.hidden, sizes.epsilon)
        self.self_attn = Attention(sizes)
        self.post_attention_layernorm = nn.RMSNorm(sizes.hidden, sizes.epsilon)
        self.mlp = Mlp(sizes)

    def forward(self, x: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
        """`[batch, position, hidden]` to the same."""
        x = x + self.self_attn(self.input_layernorm(x), by)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):
    """All but the head."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.hidden)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.hidden, sizes.epsilon)

    def forward(self, ids: Tensor) -> Tensor:
        """Tokens `[batch, position]` to `[batch, position, hidden]`."""
        x, by = self.embed_tokens(ids), turns(ids.shape[1], self.sizes, ids.device)
        for layer in self.layers:
            x = layer(x, by)
        out: Tensor = self.norm(x)
        return out


class Llama(nn.Module):
    """A language model."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.model = Body(sizes)
        self.lm_head = nn.Linear(sizes.hidden, sizes.vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Tokens `[batch, position]` to logits `[batch, position, vocabulary]`."""
        out: Tensor = self.lm_head(self.model(ids))
        return out
