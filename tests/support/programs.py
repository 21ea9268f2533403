"""Random programs over the ops that models are made of: what `test_fuzz` splits.

    Program((("attention", 0, 3, 1, 2), ("mlp", 1, 0, 0, 0)), width=16)      # an nn.Module

A step is a name and four small numbers: which earlier value it works on, and three that the step reads as it
likes (the number of heads, say, is one of the divisors of the width). Every list of steps is a program, and
a failing one shrinks to a few short lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Step = tuple[str, int, int, int, int]
STEPS: dict[str, Callable[..., Tensor]] = {}
WIDTHS = (6, 8, 12, 16, 24, 10)
ACTIVATIONS = (F.relu, F.gelu, F.silu, torch.tanh, torch.sigmoid, lambda x: F.relu(x).square())


def step(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    STEPS[function.__name__] = function
    return function


class Program(nn.Module):
    """The steps, with weights: takes `[batch, length, width]`, returns the last value and some others."""

    def __init__(self, steps: tuple[Step, ...], width: int = 16, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.steps, self.weights, self.dtype = steps, nn.ParameterDict(), dtype
        self.at, self.building = "", True
        self(torch.randn(2, 4, width, dtype=dtype))
        self.building = False
        if not len(self.weights):
            self.weights["unused"] = nn.Parameter(torch.randn(3, dtype=dtype))

    def weight(self, name: str, *shape: int) -> Tensor:
        """A weight of the step under way, made when the program is first run."""
        key = f"{self.at}_{name}"
        if self.building:
            scale = (shape[-1] if len(shape) > 1 else 1) ** -0.5
            self.weights[key] = nn.Parameter(torch.randn(shape, dtype=self.dtype) * scale)
        return self.weights[key]

    def linear(self, name: str, x: Tensor, size: int, bias: bool = False) -> Tensor:
        """A linear layer of the step under way."""
        more = self.weight(f"{name}_bias", size) if bias else None
        return F.linear(x, self.weight(name, size, x.shape[-1]), more)

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for index, (name, source, a, b, c) in enumerate(self.steps):
            self.at = f"{index}_{name}"
            values.append(STEPS[name](self, values, values[-1 - source % len(values)], a, b, c))
        return (values[-1], *values[1:-1:2])


def divisors(size: int) -> list[int]:
    return [number for number in range(1, size + 1) if size % number == 0]


def pick(options: Any, number: int) -> Any:
    return options[number % len(options)]


@step
def linear(p: Program, values: list[Tensor], x: Tensor, a: int, b: int, c: int) -> Tensor:
    return p.linear("w", x, pick(WIDTHS, a), bias=b % 2 == 0)


@step
def einsum(p: Program, values: list[Tensor], x: Tensor, a: int, b: int, c: int) -> Tensor:
    heads = pick((2, 3, 4), a)
    made = torch.einsum("bsd,hde->bshe", x, p.weight("w", heads, x.shape[-1], 4))
    return made.flatten(2) if b % 2 else made.sum(2)


@step
def mlp(p: Program, values: list[Tensor], x: Tensor, a: int, b: int, c: int) -> Tensor:
    size, act = pick((12, 16, 20, 7), a), pick(ACTIVATIONS, c)
    if b % 4 == 0:
        gate, up = p.linear("gate_up", x, 2 * size).chunk(2, -1)
        hidden = act(gate) * up
    elif b % 4 == 1:
        hidden = act(p.linear("gate", x, size, True)) * p.linear("up", x, size, True)
    elif b % 4 == 2:
        both = p.linear("gate_up", x, 2 * size)
        hidden = act(both[..., ::2]) * both[..., 1::2]
    else:
        hidden = act(p.linear("up", x, size, True))
    return p.linear("down", hidden, x.shape[-1], bias=c % 2 == 0)


@step
def experts(p: Program, values: list[Tensor], x: Tensor, a: int, b: int, c: int) -> Tensor:
    count, size, width = pick((2, 3, 4), a), pick((8, 12), b), x.shape[-1]
    scores = p.linear("router", x, count).softmax(-1)
    best, chosen = scores.topk(pick((1, 2), c), -1)
    mixed = torch.zeros_like(scores).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
    flat = x.reshape(1, -1, width).expand(count, -1, -1)
    hidden = torch.relu(torch.bmm(flat, p.weight("up", count, width, size)))
    made = torch.bmm(hidden, p.weight("down", count, size, width))
    made = made.view(count, x.shape[0], x.shape[1], width) * mixed.permute(2, 0, 1).unsqueeze(-1)
    return made.sum(0)


def _rotary(x: Tensor, interleaved: bool) -> Tensor:
    size = x.shape[-1]
    if size % 2:
        return x
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * torch.arange(1, size // 2 + 1, dtype=x.dtype)
    cos, sin = angle.cos(), angle.sin()
    if interleaved:
        left, right = x[..., ::2], x[..., 1::2]
        return torch.stack((left * cos - right * sin, left * sin + right * cos), -1).flatten(-2)
    left, right = x.chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


def _packed(
    p: Program, x: Tensor, heads: int, groups: int, size: int, style: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, `[batch, heads, length, size]`, of weights packed in several orders."""
    batch, length, _ = x.shape
    ratio = heads // groups
    if style == 0:
        packed = p.linear("qkv", x, (heads + 2 * groups) * size, True)
        q, k, v = packed.split((heads * size, groups * size, groups * size), -1)
    elif style == 1 and ratio == 1:
        packed = p.linear("qkv", x, heads * 3 * size).view(batch, length, heads, 3, size)
        q, k, v = packed[..., 0, :], packed[..., 1, :], packed[..., 2, :]
    elif style == 2:
        packed = p.linear("qkv", x, groups * (ratio + 2) * size).view(batch, length, groups, ratio + 2, size)
        q, k, v = packed[:, :, :, :-2], packed[:, :, :, -2], packed[:, :, :, -1]
    elif style == 3 and ratio == 1:
        packed = p.linear("qkv", x, 3 * heads * size).view(batch, length, heads, 3 * size)
        q, k, v = packed.chunk(3, -1)
    else:
        q, k, v = (
            p.linear(name, x, n * size, name != "k")
            for name, n in (("q", heads), ("k", groups), ("v", groups))
        )
    shaped = (
        t.reshape(batch, length, n, size).transpose(1, 2) for t, n in ((q, heads), (k, groups), (v, groups))
    )
    return tuple(shaped)  # type: ignore[return-value]


@step
def attention(p: Program, values: list[Tensor], x: Tensor, a: int, b: int, c: int) -> Tensor:
    batch, length, width = x.shape
    heads, ratio, size = pick((1, 2, 3, 4, 6), a), pick((1, 1, 2, 3), b), pick((2, 4, 6), c)
    groups = heads // ratio if heads % ratio == 0 else heads
    q, k, v = _packed(p, x, heads, groups, size, (a + b + c) % 5)
    if a % 2:
        q, k = _rotary(q, b % 2 == 0), _rotary(k, b % 2 == 0)
    kind = (a * 3 + b + c) % 5
    if kind == 0:
        made = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=groups != heads)
    else:
        if c % 2:
            k, v = (t.repeat_interleave(heads // groups, 1) for t in (k, v))
        else:
            k, v = (
                t[:, :, None]
                .expand(batch, groups, heads // groups, length, size)
                .reshape(batch, heads, length, size)
                for t in (k, v)
            )
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        if kind == 1:
            made = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        elif kind == 2:
            slopes = p.weight("slopes", heads, 1, 1)
            places = torch.arange(length, dtype=x.dtype)
            scores = q @ k.transpose(-1, -2) * size**-0.5 + slopes * places
            made = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v
        elif kind == 3:
            states = torch.einsum("bhsd,bhse->bhsde", F.elu(k) + 1, v).cumsum(2)
            made = torch.einsum("bhsd,bhsde->bhse", F.elu(q) + 1, states)
        else:
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k)
            made = torch.einsum("bhqk,bhkd->bhqd", scores.sigmoid(), v)
    return p.linear("out", made.transpose(1, 2).reshape(batch, length, heads * size), width, bias=b % 2 == 0)


@step
def residual(p: Program, values: list[Tensor], x: Tensor, a: int, b: int, c: int) -> Tensor:
    alike = [value for value in values if value.shape == x.shape]
    return x + pick(alike, a) * pick((1, -1, 0.5), b)


@step
def norm(p: Program, values: list[Tensor], x: Tensor, a: int, b: int, c: int) -> Tensor:
    width, kind = x.shape[-1], a % 6
    if kind == 0:
        return F.layer_norm(x, (width,), p.weight("w", width), p.weight("b", width))
    if kind == 1:
        return p.weight("w", width) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)
    if kind == 2:
        groups = pick(divisors(width), b)
        return F.group_norm(
            x.transpose(1, 2), groups, p.weight("w", width), p.weight("b", width), 1e-3
        ).transpose(1, 2)
    if kind == 3:
        return x.softmax(-1 - b % 2)
    if kind == 4:
        heads = pick(divisors(width), b)
        apart = x.view(*x.shape[:2], heads, width // heads)
        return F.layer_norm(apart, apart.shape[-1:], eps=1e-2).flatten(2)
    return x / (x.abs().amax(-1, keepdim=True) + 1)


@step
def activation(p: Program, values: list[Tensor], x: Tensor, a: int, b: int, c: int) -> Tensor:
    made = pick(ACTIVATIONS, a)(x)
    return torch.where(made > 0.1, made, x * 0.5) if b % 2 else made


@step
def scale(p: Program, values: list[Tensor], x: Tensor, a: int, b: int, c: int) -> Tensor:
    width, kind = x.shape[-1], a % 5
    if kind == 0:
        return x * p.weight("w", width) + p.weight("b", 1, 1, width)
    if kind == 1:
        return x * torch.sigmoid(p.linear("gate", x, 1))
    if kind == 2:
        return x - x.mean(b % 2 + 1, keepdim=True)
    if kind == 3:
        return x * x.sum(1, keepdim=True).tanh() + p.weight("b", width)[None]
    heads = pick(divisors(width), b)
    return (x.view(*x.shape[:2], heads, -1) * p.weight("w", heads, 1)).flatten(2)


@step
def shuffle(p: Program, values: list[Tensor], x: Tensor, a: int, b: int, c: int) -> Tensor:
    width, kind = x.shape[-1], a % 7
    if kind == 0:
        order = torch.arange(width).flip(0) if b % 2 else (torch.arange(width) * 5 + c) % width
        return x[..., order]
    if kind == 1:
        heads = pick(divisors(width), b)
        return x.view(*x.shape[:2], heads, -1).transpose(2, 3).flatten(2)
    if kind == 2:
        return x.flip(b % 2 + 1)
    if kind == 3:
        return x.roll(c + 1, b % 2 + 1)
    if kind == 4:
        return x.sort(b % 2 + 1).values
    if kind == 5:
        return x.cumsum(b % 2 + 1)
    return (
        x.gather(2, x.argsort(2)[..., : max(1, width - c)]).index_select(1, torch.zeros(1, dtype=torch.int64))
        + x.mean()
    )


@step
def cut(p: Program, values: list[Tensor], x: Tensor, a: int, b: int, c: int) -> Tensor:
    width, kind = x.shape[-1], a % 5
    if kind == 0:
        start = b % width
        return x[..., start : start + 1 + c]
    if kind == 1:
        return x[..., b % 2 :: 2] if width > 1 else x
    if kind == 2:
        parts = x.split(max(1, width // (2 + b % 2)), -1)
        return pick(parts, c)
    if kind == 3:
        return x[:, -1 - b % 2 :]
    heads = pick(divisors(width), b)
    return x.view(*x.shape[:2], heads, -1)[:, :, c % heads]


@step
def join(p: Program, values: list[Tensor], x: Tensor, a: int, b: int, c: int) -> Tensor:
    other = pick([value for value in values if value.shape[:2] == x.shape[:2]], a)
    kind = b % 4
    if kind == 0:
        return torch.cat((x, other), -1)
    if kind == 1:
        return torch.cat((x, x.neg()), 1)
    if kind == 2:
        return torch.stack((x, x * 2), 2 + c % 2).flatten(2)
    return F.pad(x, (c % 3, b % 2))


@step
def slide(p: Program, values: list[Tensor], x: Tensor, a: int, b: int, c: int) -> Tensor:
    width = x.shape[-1]
    groups = pick(divisors(width), a) if b % 2 else width
    size = pick((1, 2, 3), c)
    weight = p.weight("w", width, width // groups, size)
    bias = p.weight("b", width) if a % 2 else None
    made = F.conv1d(F.pad(x.transpose(1, 2), (size - 1, 0)), weight, bias, groups=groups)
    return made.transpose(1, 2)


@step
def lookup(p: Program, values: list[Tensor], x: Tensor, a: int, b: int, c: int) -> Tensor:
    rows = pick((5, 8, 12), a)
    table = p.weight("table", rows, x.shape[-1])
    ids = torch.arange(x.shape[1]) % rows if b % 2 else p.linear("scores", x, rows).argmax(-1)
    found = F.embedding(ids, table)
    return (x + found) @ table.t() if c % 2 else x + found


@step
def pool(p: Program, values: list[Tensor], x: Tensor, a: int, b: int, c: int) -> Tensor:
    kind, width = a % 4, x.shape[-1]
    if kind == 0:
        return x.amax(1, keepdim=True) + x
    if kind == 1:
        heads = pick(divisors(width), b)
        return x.view(*x.shape[:2], heads, -1).sum(2 + c % 2)
    if kind == 2:
        return x * x.var(-1, keepdim=True)
    return x @ (x.transpose(1, 2) @ x).tanh()
