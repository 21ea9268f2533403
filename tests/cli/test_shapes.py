"""The verdict on models of many shapes, by memory that is calculated by hand from their sizes alone."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import tpfx
from tpfx.cli import app
from tpfx.plan.plan import Plan

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def verdict(*words: Any) -> str:
    """What `tpfx plan` says first."""
    result = CliRunner().invoke(app, ["plan", *map(str, words)], catch_exceptions=False)
    fits = result.stdout.startswith("fits: ")
    assert result.exit_code == (0 if fits else 1), result.stdout
    return result.stdout.partition("\n\n")[0]


def size(text: str, what: str) -> int:
    """The bytes that a verdict says of something."""
    found = re.search(rf"([\d.]+) (B|KiB|MiB|GiB)(?:,| on each,)? {what}", text)
    return round(float(found[1]) * UNITS[found[2]]) if found else 0


def check(text: str, devices: int, weights: int, kept: int = 0) -> None:
    """Compare with what all devices hold by hand.

    Args:
        weights: bytes of all; what is undivided, as the verdict says, is on each.
        kept: bytes of keys, values and states that a device has.
    """
    whole = size(text.partition("undivided")[2].replace(", ", " "), "")
    each = (weights - whole) / devices + whole
    assert math.isclose(size(text, "weights"), each, rel_tol=0.01), (text, weights)
    told = size(text, "keys, values and states") or size(text, "results")
    assert math.isclose(told, kept, rel_tol=0.001), (text, kept)


def settings(**fields: Any) -> list[str]:
    return [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]


# Own modules: each gives (model, inputs).


class Joint(nn.Module):
    """A block of a diffusion transformer: attention over image and text together, with modulation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.image, self.text = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.modulation = nn.Linear(width, 6 * width)
        self.out, self.up, self.down = (
            nn.Linear(width, width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, image: torch.Tensor, text: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(time)[:, None].chunk(6, -1)
        given = nn.functional.layer_norm(image, image.shape[-1:]) * (1 + scale) + shift
        packed = torch.cat([self.image(given), self.text(text)], 1)
        q, k, v = packed.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        image = image + gate * self.out(seen[:, : image.shape[1]])
        given = nn.functional.layer_norm(image, image.shape[-1:]) * (1 + scale2) + shift2
        result: torch.Tensor = image + gate2 * self.down(nn.functional.gelu(self.up(given)))
        return result


class Recurrent(nn.Module):
    """Two layers of an LSTM, and classes."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.classes = nn.LSTM(64, 128, 2, batch_first=True), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        classes: torch.Tensor = self.classes(self.lstm(x)[0])
        return classes


def diffusion() -> Any:
    return Joint(256, 8), (torch.zeros(2, 16, 256), torch.zeros(2, 8, 256), torch.zeros(2, 256))


def lstm() -> Any:
    return Recurrent(), (torch.zeros(4, 20, 64),)


def convolutions() -> Any:
    layers = nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 128, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(128, 1000)), (torch.zeros(4, 3, 32, 32),)


def own() -> Any:
    return nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)), (torch.zeros(8, 256),)


def linear(width: int, out: int) -> int:
    return width * out + out


_JOINT = 2 * linear(256, 768) + linear(256, 1536) + linear(256, 256) + linear(256, 1024) + linear(1024, 256)
_LSTM = sum(4 * 128 * (given + 128) + 8 * 128 for given in (64, 128))

OWN: dict[Callable[[], Any], tuple[int, str]] = {
    diffusion: (_JOINT, "2 inputs"),
    lstm: (_LSTM + linear(128, 10), "4 inputs"),
    convolutions: (linear(3 * 9, 64) + linear(64 * 9, 128) + linear(128, 1000), "4 images"),
    own: (linear(256, 1024) + linear(1024, 256), "8 inputs"),
}


@pytest.mark.parametrize("make", OWN, ids=lambda make: make.__name__)
def test_an_own_module(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(make=make))
    count, asked = OWN[make]
    text = verdict("mine:make", "-n", 2, "--topology", "t4")
    assert text.startswith("fits: 2 × T4, ") and asked in text and "token" not in text
    check(text, 2, 4 * count)


def test_a_recurrent_net_that_no_number_of_devices_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recurrent weights are on every device, so more devices do not help."""
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(make=lstm))
    text = verdict("mine:make", "-n", 2, "--topology", "t4", "--memory", 1 + 1e-6)
    assert text.startswith("does not fit: 2 × T4, ")
    assert "99.45% of all, on every device: " in text and "needs the whole of it, 904 KiB" in text
    assert "no number of them would hold it" in text and "of weights are undivided, on every device" in text


def test_why_weights_are_undivided_is_in_the_file() -> None:
    model, inputs = lstm()
    plan = tpfx.plan(model, 2, inputs)
    assert "needs the whole of it" in str(plan.weights["lstm.weight_hh_l0"].why)
    assert plan.weights["classes.weight"].why is None and plan.to_json().count('"why"') == 8
    assert Plan.of_json(plan.to_json()) == plan


def llama_weights(
    h: int, layers: int, kv: int, ffn: int, words: int, tied: bool = False, experts: int = 0
) -> int:
    """Of grouped attention without biases and gated layers, or so many experts of those and a router."""
    gated = 3 * h * ffn
    block = 2 * h * h + 2 * h * kv + (experts * gated + experts * h if experts else gated) + 2 * h
    return layers * block + words * h * (1 if tied else 2) + h


def test_vit() -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
    text = verdict("vit", "-n", 2, "--batch", 4, *settings(**sizes, num_channels=4))
    h, patches = 64, (224 // 16) ** 2
    block = 4 * linear(h, h) + linear(h, 128) + linear(128, h) + 4 * h
    count = linear(4 * 16 * 16, h) + h + (patches + 1) * h + block + 2 * h + linear(h, 2)
    assert "4 images" in text and "images a second" in text and "token" not in text
    check(text, 2, 4 * count)


def test_mamba() -> None:
    """States do not grow: room is counted in sequences."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 1, "vocab_size": 512}
    text = verdict("mamba", "-n", 2, "--length", 16, *settings(**sizes))
    h, inner, state, kernel, step = 256, 512, 16, 4, 256 // 16
    mixer = h * 2 * inner + inner * kernel + inner + inner * (step + 2 * state) + linear(step, inner)
    count = 512 * h + mixer + inner * state + inner + inner * h + 2 * h
    check(text, 2, 4 * count, 4 * (inner * kernel + inner * state) // 2)
    assert "sequences at once, of any length: states do not grow" in text


@pytest.mark.slow
def test_t5() -> None:
    """What an encoder has made is kept whole; keys and values of it by heads, and of the first token."""
    sizes = {"d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 128, "num_layers": 1, "vocab_size": 512}
    text = verdict("t5", "-n", 2, "--length", 32, *settings(**sizes))
    attention, layers = 4 * 64 * 64, 2 * 64 * 128
    count = 512 * 64 + 2 * (attention + layers + 2 * 64) + attention + 64 + 2 * (32 * 4 + 64)
    check(text, 2, 4 * count, 4 * (2 * 64 * (32 + 1) // 2 + 32 * 64))
    assert "writes " in text


# What people have; each takes minutes.


@pytest.mark.slow
def test_whisper() -> None:
    """As `tpfx plan whisper` has it: 4 layers, 384 wide, 30 seconds of sound, text as long as it may be."""
    text = verdict("whisper", "-n", 2)
    d, ffn, layers, heard, written, words = 384, 1536, 4, 1500, 448, 51865
    attention = 4 * d * d + 3 * d
    encoder = linear(80 * 3, d) + linear(d * 3, d) + heard * d
    encoder += layers * (attention + linear(d, ffn) + linear(ffn, d) + 4 * d) + 2 * d
    decoder = (
        words * d + written * d + layers * (2 * attention + linear(d, ffn) + linear(ffn, d) + 6 * d) + 2 * d
    )
    kept = 4 * (layers * 2 * d * (heard + written) // 2 + heard * d)
    check(text, 2, 4 * (encoder + decoder), kept)
    assert "1 sequence of 448 tokens" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sizes", "devices", "fits"),
    [
        ("1B", (2048, 16, 512, 8192, 128256, True), 1, True),
        ("8B", (4096, 32, 1024, 14336, 128256), 2, True),
        ("70B", (8192, 80, 1024, 28672, 128256), 2, True),
        ("405B", (16384, 126, 1024, 53248, 128256), 8, False),
        ("experts", (4096, 32, 1024, 14336, 32000, False, 8), 2, True),
    ],
)
def test_large_language_models(kind: str, sizes: Any, devices: int, fits: bool) -> None:
    h, layers, kv, ffn, words, *more = sizes
    fields = {"hidden_size": h, "num_hidden_layers": layers, "intermediate_size": ffn, "vocab_size": words}
    heads = h // (64 if kind == "1B" else 128)
    fields |= {"num_attention_heads": heads, "num_key_value_heads": 8, "max_position_embeddings": 131072}
    fields |= {"dtype": "bfloat16", **({"tie_word_embeddings": "true"} if kind == "1B" else {})}
    name = "mixtral" if kind == "experts" else "llama"
    text = verdict(name, "-n", devices, "--length", 8192, *settings(**fields))
    count = llama_weights(h, layers, kv, ffn, words, *more)
    check(text, devices, 2 * count, 2 * layers * 2 * kv * 8192 // devices)
    assert text.startswith("fits: " if fits else "does not fit: ")
    by_hand = (2 * count + 2 * layers * 2 * kv * 8192) / devices
    assert (by_hand <= 76 * 2**30) == fits
    if not fits:
        found = re.search(r"about (\d+) devices would hold it", text)
        assert found and 0 <= int(found[1]) - math.ceil(by_hand * devices / (76 * 2**30)) <= 1
