"""Small modules that compile in a moment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two linear layers, a norm and a relu between them: `[batch, 8]` to `[batch, 8]`.

    The weights are the same on every call with the same seed.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.up, self.norm, self.down = nn.Linear(8, 24), nn.LayerNorm(24), nn.Linear(24, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.norm(self.up(x))))


class Mlp(nn.Module):
    """Two linear layers without biases and a relu between them: `[batch, 64]` to `[batch, 64]`."""

    def __init__(self, inside: int = 256) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, inside, bias=False), nn.Linear(inside, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class TiedNet(nn.Module):
    """A tied pair, a buffer, a bias, and a layer that forward leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.spare = nn.Linear(16, 48)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor([0.5]))

    def forward(self, ids: Tensor, bias: Tensor | None = None, options: Any = None) -> Tensor:
        x = self.embed(ids)
        x = x + self.down(torch.relu(self.up(x))) * self.scale
        for item in (options or {}).get("extra", ()):
            x = x + item
        return self.head(x if bias is None else x + bias)


class Branches(nn.Module):
    """Two layers split by rows whose sums are independent."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 256)
        self.left, self.right = nn.Linear(256, 64, bias=False), nn.Linear(256, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.up(x).relu()
        return self.left(inner).sin() * self.right(inner).cos()


class TwoTowers(nn.Module):
    """Text, and an image if there is one: a call with text alone uses half of the weights.

    Ids `[batch, length]` of 50, images `[batch, 3, 8, 8]`, to `[batch, 32]`.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.text = nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.image = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 32))
        self.image.register_buffer("scale", torch.tensor(2.0))

    def forward(self, ids: Tensor, image: Tensor | None = None) -> Tensor:
        text = self.text(ids).mean(1)
        return text if image is None else text + self.image(image) * self.image.scale


def state_of(model: nn.Module) -> tuple[Any, ...]:
    """Every object that compile may touch, and what is in it."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    attributes = [sorted(vars(module)) for module in model.modules()]
    return {name: id(value) for name, value in named.items()}, attributes, model.training
