# %% [markdown]
# # Split an op of your own
#
# tpfx knows what torch's ops do with dimensions. Of an op that you have written, a kernel say, it does not:
# the op runs on one device, its result is sent to the others, and the report says so. A line tells tpfx, and
# another checks that line. It needs `pip install tpfx` alone.

# %%
import torch
from torch import nn

import tpfx

DEVICES = ["cpu", "cpu"]

# %% [markdown]
# ## The op
#
# It multiplies each channel by a factor of its own; in place of its body there would be your kernel.


# %%
@torch.library.custom_op("mine::scale", mutates_args=())
def scale(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return x * factors


@scale.register_fake
def _(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)
        self.factors = nn.Parameter(torch.randn(256))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(scale(self.up(x), self.factors))
        return y


x = torch.randn(8, 64)
expected = Net()(x).detach()


def split() -> None:
    model = tpfx.compile(Net(), DEVICES, example_inputs=(x,))
    with torch.no_grad():
        print(f"largest difference from the unsharded model: {(model(x) - expected).abs().max():.0e}")
    report = tpfx.report(model)
    print("ops that run whole:", ", ".join(report.whole_ops) or "none")
    print("collectives:", [collective.kind for collective in report.collectives])


# %% [markdown]
# ## Without a rule
#
# Right, but on one device.

# %%
split()

# %% [markdown]
# ## With one
#
# A rule has a group of letters for each tensor that goes in, and one for each that comes out. The same letter
# is the same dimension. `check_rule` runs every split that the rule allows, and compares with the op run
# whole. A wrong rule does not get past it.

# %%
try:
    wrong = "... d, e -> ... d"  # any channels, with any factors
    tpfx.register_rule(scale, wrong)
    tpfx.check_rule(scale, torch.randn(4, 6), torch.randn(6))
except tpfx.UntrueRuleError as error:
    print(wrong, "is not true:", str(error).splitlines()[0])

tpfx.register_rule(scale, "... d, d -> ... d")
print("splits tried, all right:", tpfx.check_rule(scale, torch.randn(4, 6), torch.randn(6)))

# %%
split()
