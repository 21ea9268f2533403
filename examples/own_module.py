# %% [markdown]
# # Split a module of your own
#
# tpfx has no list of architectures. It reads the graph of whatever module it is given: here a block with
# gated heads and a mixture of two widths, in plain PyTorch, which nobody has described to it. It needs
# `pip install tpfx` alone.

# %%
import torch
from torch import nn

import tpfx

DEVICES = ["cpu", "cpu"]


# %%
class GatedBlock(nn.Module):
    """Attention, each head of which has a gate, and two feed-forwards that add up."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate = nn.Linear(width, heads)
        self.narrow = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, time, width]` to the same."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed * self.gate(x).sigmoid().transpose(1, 2)[..., None]
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y: torch.Tensor = x + self.narrow(x) + self.wide(x)
        return y


torch.manual_seed(0)
whole = nn.Sequential(GatedBlock(), GatedBlock())
x = torch.randn(2, 16, 64)

# %% [markdown]
# ## Before anything is split
#
# A plan needs an input of the right shape, and no devices.

# %%
print(tpfx.plan(whole, 2, (x,)))

# %% [markdown]
# ## Split
#
# Outputs and gradients are those of the unsharded module.

# %%
torch.manual_seed(0)
model = tpfx.compile(nn.Sequential(GatedBlock(), GatedBlock()), DEVICES, example_inputs=(x,))


def gradients(module: nn.Module) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(module(x).square().mean(), list(module.parameters()))


pairs = zip(gradients(model), gradients(whole), strict=True)
print(f"largest difference of the gradients: {max((a - b).abs().max().item() for a, b in pairs):.0e}")
with torch.no_grad():
    print(f"and of the outputs: {(model(x) - whole(x)).abs().max():.0e}")

# %% [markdown]
# ## How it was divided
#
# The parallel graph: a line for each op, with shapes, splits and collectives.

# %%
print(tpfx.report(model).dump())
