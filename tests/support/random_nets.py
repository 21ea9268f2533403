"""Small nets that draw random numbers where a graph calls another graph, or nothing is known of an op.

python -m tests.support.random_nets OUT 20 checkpoint cond …     # RANK and WORLD_SIZE as torchrun gives them
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._higher_order_ops.map import map as map_rows
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import tpfx

Inner = Callable[["Drawing", torch.Tensor], torch.Tensor]
INNER: dict[str, Inner] = {}


class Drawing(nn.Module):
    """Four linear layers, and between them whatever draws: `[batch, 8]` to `[batch, 4]`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = INNER[name]
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 16)
        self.extra, self.out = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.inner(self, self.down(torch.tanh(self.up(x)))))


def drawing(inner: Inner) -> Inner:
    """A net by the name of the function that is inside of it."""
    INNER[inner.__name__] = inner
    return inner


def steps(model: nn.Module, calls: int, train: bool) -> list[tuple[Any, ...]]:
    """Of each call: the result, the generator's state then and after the backward pass, and the gradients."""
    torch.manual_seed(7)
    x, found = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), []
    for _ in range(calls):
        model.zero_grad()
        with torch.set_grad_enabled(train):
            result = model(x)
            state = torch.get_rng_state()
            if train:
                result.square().mean().backward()
        gradients = [
            weight.grad if weight.grad is None else whole(weight.grad) for weight in model.parameters()
        ]
        found.append((whole(result), state, torch.get_rng_state(), gradients))
    return found


def whole(value: torch.Tensor) -> torch.Tensor:
    """A plain copy."""
    return (value.full() if isinstance(value, tpfx.ShardedTensor) else value).detach().clone()


def assert_same(expected: list[tuple[Any, ...]], got: list[tuple[Any, ...]]) -> None:
    """Numbers to rounding errors, and the generator bit for bit, after each pass of each call."""
    for at, (left, right) in enumerate(zip(expected, got, strict=True)):
        for name, one, other in zip(("result", "forward", "backward", "gradients"), left, right, strict=True):
            told = partial("call {}, {}: {}".format, at, name)
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6, msg=told)


# Checkpoints: what is computed again in the backward pass draws the same.


def _dropped(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    return F.dropout(torch.tanh(F.dropout(net.extra(h), 0.5)), 0.2)


@drawing
def checkpointed(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    return checkpoint(_dropped, net, checkpoint(_dropped, net, h, use_reentrant=False), use_reentrant=False)


@drawing
def reentrant(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    return checkpoint(_dropped, net, h, use_reentrant=True)


@drawing
def checkpoint_in_checkpoint(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    def outer(h: torch.Tensor) -> torch.Tensor:
        return F.dropout(checkpoint(_dropped, net, h, use_reentrant=False), 0.3)

    return checkpoint(outer, h, use_reentrant=False)


@drawing
def checkpointed_attention(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    def attention(h: torch.Tensor) -> torch.Tensor:
        q = net.extra(h).view(-1, 1, 4, 4)
        return F.scaled_dot_product_attention(q, q, q, dropout_p=0.3).flatten(1)

    return checkpoint(attention, h, use_reentrant=False)


@drawing
def checkpointed_quiet_attention(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    """Which may be split."""

    def attention(h: torch.Tensor) -> torch.Tensor:
        q = net.extra(h).view(-1, 1, 4, 4)
        return F.dropout(F.scaled_dot_product_attention(q, q, q).flatten(1), 0.2)

    return checkpoint(attention, h, use_reentrant=False)


@drawing
def checkpointed_choice(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    def choice(h: torch.Tensor) -> torch.Tensor:
        shares = net.extra(h).softmax(-1)
        return shares.gather(1, torch.multinomial(shares.detach(), 3)).sum(1, keepdim=True) * h

    return checkpoint(choice, h, use_reentrant=False)


@drawing
def new_draws_in_the_backward_pass(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    """Which tpfx refuses."""
    return checkpoint(_dropped, net, h, use_reentrant=False, preserve_rng_state=False)


@drawing
def checkpointed_branch(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    return checkpoint(branch, net, h, use_reentrant=False)


@drawing
def checkpointed_op(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    return checkpoint(lambda h: torch.tanh(noise(net.extra(h))), h, use_reentrant=False)


# Branches, loops, regions. Most draw other numbers in the backward pass: torch has it so for eager code too.


@drawing
def branch(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    h = torch.cond(h.sum() > -1e9, lambda h: F.dropout(net.extra(h), 0.5), lambda h: h * 2, (h,))
    return torch.cond(h.sum() > 1e9, lambda h: h * 2, lambda h: h + torch.rand_like(h), (h,))


@drawing
def branch_in_branch(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    def inner(h: torch.Tensor) -> torch.Tensor:
        return torch.cond(h.mean() > -1e9, lambda h: F.dropout(h, 0.5), lambda h: h * 2, (h,))

    return torch.cond(h.sum() > -1e9, inner, lambda h: h * 2, (h,))


@drawing
def scanned(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    def step(carry: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        carry = F.dropout(carry + x, 0.5)
        return carry, carry.clone()

    return scan(step, torch.zeros_like(h[0]), h)[1]


@drawing
def mapped(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    return map_rows(lambda row: F.dropout(row, 0.5), h)


@drawing
def looped(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    def step(at: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return at + 1, F.dropout(h, 0.3)

    return while_loop(lambda at, h: at < 3, step, (torch.zeros((), dtype=torch.int64), h))[1]


@torch.compiler.nested_compile_region
def _region(h: torch.Tensor) -> torch.Tensor:
    return F.dropout(h.sin(), 0.5)


@drawing
def regions(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    return _region(_region(h))


@drawing
def inside_of_attention(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    """Which eager code refuses, and so does tpfx."""
    from torch.nn.attention.flex_attention import flex_attention

    q = h.view(1, 1, -1, 16)
    return flex_attention(q, q, q, score_mod=lambda score, *_: score + torch.rand_like(score)).view(-1, 16)


# Ops of which nothing is known.


@torch.library.custom_op("tpfx_tests::noise", mutates_args=())
def noise(x: torch.Tensor) -> torch.Tensor:
    """An op that draws, and does not say so."""
    return x + torch.randn_like(x)


noise.register_fake(lambda x: torch.empty_like(x))
noise.register_autograd(lambda _, gradient: gradient * 2)


@torch.library.custom_op("tpfx_tests::parts", mutates_args=())
def parts(x: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Several results."""
    return [x * torch.rand_like(x), torch.randint(0, 5, (count,))]


parts.register_fake(lambda x, count: [torch.empty_like(x), torch.empty(count, dtype=torch.int64)])


@torch.library.custom_op("tpfx_tests::shake", mutates_args=("x",))
def shake(x: torch.Tensor) -> None:
    """In place."""
    x.add_(torch.randn_like(x))


shake.register_fake(lambda x: None)


@drawing
def custom_op(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    return noise(h) + noise(h)


@drawing
def custom_ops(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    shaken = h.detach().clone()
    shake(shaken)
    scaled, drawn = parts(h.detach(), 3)
    noise(h)  # for nothing, but that it draws
    return h + shaken + scaled + drawn.sum()


@drawing
def custom_op_in_a_branch(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    return torch.cond(h.sum() > -1e9, lambda h: noise(h), lambda h: h * 2, (h,))


# Draws that nothing uses, or the backward pass alone, or that it makes itself.


@drawing
def unused(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    torch.rand(3)
    F.dropout(h, 0.5)
    return F.dropout(h, 0.3)


class _Masked(torch.autograd.Function):
    """The gradient times a mask that the forward pass has drawn."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(torch.rand_like(x))
        return x * 2

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * context.saved_tensors[0]


class _Noisy(torch.autograd.Function):
    """The gradient and some noise."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient + torch.randn(gradient.shape) + torch.randn_like(gradient)


@drawing
def mask_for_the_backward_pass(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    return F.dropout(_Masked.apply(h), 0.3)


@drawing
def checkpointed_mask(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    return checkpoint(lambda h: torch.tanh(_Masked.apply(net.extra(h))), h, use_reentrant=False)


@drawing
def noise_in_the_backward_pass(net: Drawing, h: torch.Tensor) -> torch.Tensor:
    return F.dropout(_Noisy.apply(h), 0.3)


def main(out: str, calls: str, *names: str) -> None:
    """What this process finds of each net, training and not."""
    found = {
        (name, train): steps(tpfx.compile(Drawing(name)), int(calls), train)
        for name in names
        for train in (True, False)
    }
    torch.save(found, out)


if __name__ == "__main__":
    main(f"{sys.argv[1]}.{os.environ['RANK']}", *sys.argv[2:])
