"""Attention whose scores and masks are functions, of examples and heads: each device has some of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import flex_attention as flex

import tpfx
from tests.support.compare import gradient_error, largest_error
from tpfx.ir.annotations import choice_of

HEAD, TOKENS = 16, 24

# What torch says of the unsharded model: it runs op by op.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


class Attention(nn.Module):
    """Every head and every example has scores and masks of its own; `learned`: a slope that is a weight."""

    def __init__(self, heads: int, groups: int, learned: bool = False) -> None:
        super().__init__()
        width = heads * HEAD
        self.heads, self.grouped = heads, heads != groups
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(width, groups * HEAD), nn.Linear(width, groups * HEAD)
        slopes = torch.rand(heads)
        self.slopes = nn.Parameter(slopes) if learned else nn.Buffer(slopes)

    def forward(self, x: Tensor) -> Tensor:
        def sloped(score: Tensor, example: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return score - self.slopes[head] * (row - column) * (example + 1)

        def masked(example: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return (row >= column) & (column + 2 * (head % 3) + example >= row - 6)

        tokens = x.shape[1]
        blocks = flex.create_block_mask(masked, len(x), self.heads, tokens, tokens, device=str(x.device))
        query, key, value = (
            layer(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        seen = flex.flex_attention(query, key, value, sloped, blocks, enable_gqa=self.grouped)
        return self.out(seen.transpose(1, 2).flatten(2))  # type: ignore[union-attr]


@pytest.mark.parametrize(("heads", "groups", "devices"), [(6, 6, 2), (8, 4, 3), (6, 1, 2), (2, 2, 3)])
@torch.no_grad()
def test_heads_are_divided(heads: int, groups: int, devices: int) -> None:
    """Also where there are fewer than devices."""
    torch.manual_seed(0)
    model, x = Attention(heads, groups), torch.randn(3, TOKENS, heads * HEAD)
    expected = model(x)
    parallel = tpfx.compile(model, ["cpu"] * devices)
    assert largest_error(expected, parallel(x)) < 1e-5
    graph = tpfx.report(parallel).parallel
    assert graph is not None
    attention, *_ = graph.graph.find_nodes(op="call_function", target=torch.ops.higher_order.flex_attention)
    choice = choice_of(attention)
    assert choice is not None and choice.kind == "split"


@pytest.mark.parametrize(("groups", "devices"), [(2, 2), (1, 3)])
def test_what_scores_are_made_with_has_gradients(
    groups: int, devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch refuses training on a CPU, where its kernels could do it."""
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    torch.manual_seed(0)
    model, x = Attention(4, groups, learned=True), torch.randn(2, TOKENS, 4 * HEAD)
    parallel = tpfx.compile(copy.deepcopy(model), ["cpu"] * devices)
    for one in (model, parallel):
        one(x).square().sum().backward()
    expected = {name: weight.grad for name, weight in model.named_parameters()}
    got = {name: weight.grad.full() for name, weight in parallel.named_parameters()}
    assert gradient_error(expected, got) < 1e-4
    assert expected["slopes"].any()
