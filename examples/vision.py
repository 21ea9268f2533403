# %% [markdown]
# # Images: a vision transformer and a conv net, split
#
# Nothing in tpfx knows about language. A vision transformer is divided by heads, a conv net by channels, and
# both learn what the unsharded ones learn.
#
# The images are drawn here, and the models start from random weights. It needs
# `pip install 'tpfx[transformers]'`, for the vision transformer alone.

# %%
from collections.abc import Callable

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

import tpfx

DEVICES = ["cpu", "cpu"]

# %% [markdown]
# ## Stripes
#
# Images of 32 by 32 with stripes that lie or stand, begin somewhere, and can hardly be seen for noise.


# %%
def drawn(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `[count, 3, 32, 32]`, and for each 0 where its stripes lie, 1 where they stand."""
    random = torch.Generator().manual_seed(seed)
    kinds = torch.randint(2, (count,), generator=random)
    wave = torch.sin(torch.arange(32) + 6.28 * torch.rand(count, 1, generator=random))
    stripes = torch.where(kinds.view(-1, 1, 1) == 0, wave[:, :, None], wave[:, None, :])
    return stripes[:, None] + torch.randn(count, 3, 32, 32, generator=random), kinds


# %% [markdown]
# ## Two models
#
# A small vision transformer of transformers, and a conv net in plain PyTorch.


# %%
class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "image_size": 32}
        config = ViTConfig(num_attention_heads=4, patch_size=8, num_labels=2, **sizes)
        self.inner = ViTForImageClassification(config)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(images).logits
        return logits


def conv_net() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(4)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 2)),
    )


def train(model: nn.Module, steps: int) -> list[float]:
    """The loss of each step."""
    optimizer, losses = torch.optim.AdamW(model.train().parameters(), lr=1e-3), []
    for step in range(steps):
        images, kinds = drawn(32, seed=step)
        loss = nn.functional.cross_entropy(model(images), kinds)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


# %% [markdown]
# ## Both, whole and split
#
# The same losses; and what the split one has learned, on images that it has not seen.

# %%
builders: dict[str, Callable[[], nn.Module]] = {"vision transformer": Transformer, "conv net": conv_net}
for name, build in builders.items():
    torch.manual_seed(0)
    whole = train(build(), 5)
    torch.manual_seed(0)
    model = tpfx.compile(build(), DEVICES)
    split = train(model, 5)
    difference = max(abs(one - other) for one, other in zip(whole, split, strict=True))
    train(model, 60)
    images, kinds = drawn(200, seed=1000)
    with torch.no_grad():
        right = (model.eval()(images).argmax(-1) == kinds).float().mean()
    print(f"{name}: largest difference from the unsharded model's losses: {difference:.0e}")
    print(f"{right:.0%} of 200 images that it has not seen are right")
    print(tpfx.report(model))
