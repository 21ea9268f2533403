"""Milliseconds of prompts and tokens of Llamas of published shapes, random, unsharded and split.

What is to be timed is prepared first, by many processes at once, and timed later, while the others wait: each
of these functions yields once in between, and returns what it found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

import torch
import transformers

import tpfx

from .tiny import Where, noted

PROMPT, TOKENS, COMPARED = 128, 60, 12
Timed = Generator[None, None, dict[str, Any]]
SHAPES: dict[str, dict[str, Any]] = {
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
    },
}


def llama(where: Where, shape: str, layers: int | None) -> Any:
    """Llama 3.2 1B's shape or Llama 3.1 8B's, in bfloat16."""
    sizes = {**SHAPES[shape], "num_key_value_heads": 8, "vocab_size": 128256}
    if where.small:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 256}
    sizes["num_hidden_layers"] = min(layers or 99, 2 if where.small else SHAPES[shape]["num_hidden_layers"])
    tokens = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
    config = transformers.LlamaConfig(
        **sizes, **tokens, max_position_embeddings=2048, tie_word_embeddings=shape == "1B"
    )
    torch.manual_seed(0)
    with torch.device(where.first):
        dtype = torch.bfloat16 if where.on_gpu else torch.float32
        return transformers.LlamaForCausalLM._from_config(config, dtype=dtype).eval()


def unsharded(where: Where, shape: str, layers: int | None = None, compiled: bool = False) -> Timed:
    """Eager, or by `torch.compile(mode="reduce-overhead")`: CUDA graphs of Inductor's kernels."""
    model = llama(where, shape, layers)
    start, step, mark = time.perf_counter(), model.forward, torch.compiler.cudagraph_mark_step_begin
    if compiled:
        step = torch.compile(step, fullgraph=True, mode="reduce-overhead")
    return (yield from _measure(where, model, step, start, mark if compiled else lambda: None))


def split(
    where: Where,
    shape: str,
    layers: int | None = None,
    ranks: int = 1,
    device_compiler: str = "native",
    mode: str = "reduce-overhead",
) -> Timed:
    """By tpfx, over the first of the devices, or over all."""
    model = llama(where, shape, layers)
    start, devices = time.perf_counter(), (where.devices * ranks)[:ranks]
    model = tpfx.compile(model, devices, device_compiler=device_compiler, mode=mode)
    found = yield from _measure(where, model, model, start, lambda: None)
    return {**found, **noted(model)}


def _measure(
    where: Where, model: Any, step: Callable[..., Any], start: float, mark: Callable[[], None]
) -> Timed:
    """Milliseconds of a prompt, and of a token with a static cache: all, and what the host takes of it."""
    loop = Loop(where, model, step, mark)
    first = loop.run(12)
    found: dict[str, Any] = {"s until 12 tokens": round(time.perf_counter() - start, 1)}
    yield
    best = min((loop.run(6 if where.small else TOKENS) for _ in range(2)), key=lambda one: one["ms"])
    found |= compared(loop.first, loop.last)
    if where.on_gpu:
        found["GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return {"layers": model.config.num_hidden_layers, **best, "tokens": first["tokens"][:4], **found}


def compared(first: list[torch.Tensor], again: list[torch.Tensor]) -> dict[str, Any]:
    """How far logits are from those of the first time, up to the first token that is another one.

    Of random weights in bfloat16 the first two tokens are often as near as numbers are, or equal.
    """
    apart = 0.0
    for at, (right, found) in enumerate(zip(first, again, strict=False)):
        apart = max(apart, float((found.float() - right.float()).abs().max()))
        if not torch.equal(right.argmax(-1), found.argmax(-1)):
            best = right.float().topk(2).values[0]
            gap = float(best[0] - best[1])
            assert gap <= 2 * apart < 0.1, f"token {at} is another one: {gap} before the next, {apart} apart"
            return {"logits apart": apart, "another token": at}
    return {"logits apart": apart} if apart else {}


class Loop:
    """Calls of a model, one token after the other, without `generate` around them."""

    def __init__(self, where: Where, model: Any, step: Callable[..., Any], mark: Callable[[], None]) -> None:
        self.where, self.model, self.step, self.mark = where, model, step, mark
        torch.manual_seed(1)
        self.prompt = torch.randint(2, 256, (1, PROMPT), device=where.first)
        self.first: list[torch.Tensor] = []  # logits of the first tokens, of the first run and of the last
        self.last: list[torch.Tensor] = []

    @torch.no_grad()
    def run(self, count: int) -> dict[str, Any]:
        """Milliseconds of the prompt, of a token and of the host's part in it, and the tokens."""
        self.first, self.last = self.first or self.last, []
        cache = transformers.StaticCache(config=self.model.config, max_cache_len=512)
        self.where.wait()
        start = time.perf_counter()
        logits = self.model(self.prompt, past_key_values=cache, use_cache=True).logits
        token = logits[:, -1:].argmax(-1)
        self.where.wait()
        found, tokens, host = {"prompt ms": round((time.perf_counter() - start) * 1e3, 2)}, [], 0.0
        for at in range(count):
            if at == count // 3:  # what comes before is to warm up
                self.where.wait()
                host, start = 0.0, time.perf_counter()
            self.mark()
            now = time.perf_counter()
            position = torch.full((1, 1), PROMPT + at, device=self.where.first)
            logits = self.step(token, past_key_values=cache, position_ids=position, use_cache=True).logits
            if at < COMPARED:
                self.last.append(logits[:, -1].clone())
            token = logits[:, -1:].argmax(-1).clone()
            tokens.append(token)
            host += time.perf_counter() - now
        self.where.wait()
        timed, took = count - count // 3, time.perf_counter() - start
        written = torch.cat(tokens).flatten().tolist()
        return {
            "ms": round(took / timed * 1e3, 3),
            "host ms": round(host / timed * 1e3, 3),
            **found,
            "tokens": written,
        }
