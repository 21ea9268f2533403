"""Mixtures of experts, each given the rows that chose it: how many, only a call's values tell."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tpfx
from tests.support.sharded import whole

slow = pytest.mark.slow
WIDTH, EXPERTS = 16, 4
Mix = Callable[["Mixture", Tensor, Tensor, Tensor], Tensor]
MIXES: dict[str, Mix] = {}


class Mixture(nn.Module):
    """Two of four experts for each row: `[batch, length, 16]` to `[rows, 16]`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = MIXES[name]
        self.into, self.gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH)) for _ in range(EXPERTS)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.into(x)).view(-1, WIDTH)
        weights, chosen = self.gate(x).softmax(-1).topk(2)
        return self.mix(self, x, weights, chosen)


def mix(function: Mix) -> Mix:
    """A way to write the loop."""
    MIXES[function.__name__] = function
    return function


@mix
def written_by_rows(net: Mixture, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for at, expert in enumerate(net.experts):
        rows, slots = torch.where(chosen == at)
        out[rows] += weights[rows, slots, None] * expert(x[rows])
    return out


@mix
def one_hot(net: Mixture, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """As transformers' Mixtral did."""
    masks, out = F.one_hot(chosen, EXPERTS).permute(2, 1, 0), torch.zeros_like(x)
    for at in range(EXPERTS):
        slots, rows = torch.where(masks[at])
        given = x[None, rows].reshape(-1, WIDTH)
        out.index_add_(0, rows, net.experts[at](given) * weights[rows, slots, None])
    return out


@mix
def masks(net: Mixture, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for at, expert in enumerate(net.experts):
        hit = chosen == at
        mask = hit.any(-1)
        out[mask] += (weights * hit).sum(-1)[mask, None] * expert(x[mask])
    return out


@mix
def selected(net: Mixture, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for at, expert in enumerate(net.experts):
        rows = (chosen == at).any(-1).nonzero().squeeze(-1)
        share = (weights * (chosen == at)).sum(-1).index_select(0, rows)
        out = out.index_add(0, rows, expert(x.index_select(0, rows)) * share[:, None])
    return out


@mix
def scattered(net: Mixture, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for at, expert in enumerate(net.experts):
        rows, slots = (chosen == at).nonzero(as_tuple=True)
        out.scatter_add_(0, rows[:, None].expand(-1, WIDTH), weights[rows, slots, None] * expert(x[rows]))
    return out


@mix
def sorted_rows(net: Mixture, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """Python reads the counts, so that the graph breaks."""
    order = chosen.view(-1).argsort()
    counts = chosen.view(-1).bincount(minlength=EXPERTS).tolist()
    parts = x[order // 2].split(counts)
    made = torch.cat([expert(part) for expert, part in zip(net.experts, parts, strict=True) if len(part)])
    out = torch.empty_like(made)
    out[order] = made
    return (out.view(-1, 2, WIDTH) * weights[..., None]).sum(1)


@mix
def asked(net: Mixture, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """Python asks of each expert whether any row chose it, and Dynamo leaves out a loop that does."""
    out = torch.zeros_like(x)
    for at, expert in enumerate(net.experts):
        hit = chosen == at
        mask = hit.any(-1)
        if mask.any():
            out[mask] += (weights * hit).sum(-1)[mask, None] * expert(x[mask])
    return out


ONE_GRAPH = [name for name in MIXES if name not in ("sorted_rows", "asked")]


def steps(
    model: Callable[[Tensor], Tensor], weights: nn.Module, train: bool, *lengths: int
) -> Iterator[Tensor]:
    """Of some calls with other numbers of rows: the result and the gradients."""
    for length in lengths:
        weights.zero_grad()
        with torch.set_grad_enabled(train):
            out = model(torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(length)))
        if train:
            out.square().mean().backward()
        yield out.detach()
        yield from (whole(each.grad) for each in weights.parameters() if each.grad is not None)


def assert_same(name: str, devices: int, train: bool, door: str, *lengths: int) -> nn.Module:
    plain = Mixture(name).train(train)
    call = model = copy.deepcopy(plain)
    if door == "compile":
        call = tpfx.compile(model, ["cpu"] * devices)
    else:
        call = torch.compile(model, backend="tpfx", options={"devices": ["cpu"] * devices})
    expected, found = (steps(*each, train, *lengths) for each in ((plain, plain), (call, model)))
    for left, right in zip(expected, found, strict=True):
        torch.testing.assert_close(right, left, rtol=1e-3, atol=1e-5)
    return model


CHEAP = [
    ("written_by_rows", 2, True, "compile"),
    ("masks", 3, False, "compile"),
    ("one_hot", 2, False, "backend"),
]


@pytest.mark.parametrize(
    ("name", "devices", "train", "door"),
    [
        pytest.param(*way, marks=[] if way in CHEAP else slow)
        for way in [
            (name, devices, train, door)
            for name in ONE_GRAPH
            for devices in (2, 3, 4)
            for train in (True, False)
            for door in ("compile", "backend")
        ]
    ],
)
def test_loops_around_experts_are_divided(name: str, devices: int, train: bool, door: str) -> None:
    report = tpfx.report(assert_same(name, devices, train, door, 5, 6, 4))
    assert max(report.bytes_per_device) * devices < 1.1 * report.total_bytes
    assert not report.whole_ops and not report.whole_calls
    assert not any(
        weight.startswith("experts") and weight.endswith("weight")
        for one in report.undivided
        for weight in one.names
    )
    assert door == "backend" or report.graphs == 1


@pytest.mark.parametrize(("devices", "train"), [(2, True), pytest.param(3, False, marks=slow)])
def test_counts_that_python_reads(devices: int, train: bool) -> None:
    """The graph is captured without the op whose size Python asks for; so are steps of one token."""
    report = tpfx.report(assert_same("sorted_rows", devices, train, "compile", 5, 1))
    assert max(report.bytes_per_device) * devices < 1.1 * report.total_bytes


@pytest.mark.parametrize(("devices", "train"), [(2, False), pytest.param(2, True, marks=slow)])
def test_experts_that_a_loop_calls_have_graphs_of_their_own(devices: int, train: bool) -> None:
    """In training each is planned for what comes in divided; matrices as small as these may stay whole."""
    report = tpfx.report(assert_same("asked", devices, train, "compile", 5, 6, 1))
    assert train or max(report.bytes_per_device) * devices < 1.1 * report.total_bytes
    assert report.graphs and not report.whole_calls
    assert not any("gathers it" in one.reason for one in report.undivided)


class Rows(nn.Module):
    """Returns as many rows as the values say, of what is split inside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(WIDTH, 64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.up(x))[x.sum(-1) > 0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("train", [True, pytest.param(False, marks=slow)])
def test_results_of_as_many_rows_as_the_values_say(train: bool) -> None:
    plain = Rows()
    model = tpfx.compile(copy.deepcopy(plain), ["cpu"] * 3)
    for left, right in zip(steps(plain, plain, train, 5, 6), steps(model, model, train, 5, 6), strict=True):
        torch.testing.assert_close(right, left)
    assert tpfx.report(model).graphs == 1
