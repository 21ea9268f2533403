"""Small modules that compile in a moment."""

from __future__ import annotations

import torch
from torch import nn


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
