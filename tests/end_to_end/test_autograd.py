"""Autograd as people use it: several backwards, losses that take turns, gradients of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.autograd import agree, gradients

Values = Sequence[torch.Tensor | None]

SLOW = pytest.mark.slow
DEVICES = [2, pytest.param(3, marks=SLOW)]


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), *middle, nn.Linear(16, 8))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(8, 18), nn.ModuleList(nn.Linear(18, 3) for _ in range(2))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [head(torch.tanh(self.body(x))) for head in self.heads]


class Detached(nn.Module):
    """Some of what it computes has no gradient; its results are views of one tensor, and one of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = self.a(x).tanh()
        with torch.no_grad():
            gate = self.c(x).sigmoid() * h
        y = self.b(h * gate + h.detach() * h)
        return y[:, :3], y[:, 3:], x.view(-1)


class Energy(nn.Module):
    """Forces are gradients of an energy, taken inside of forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 1))

    def forward(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        places.requires_grad_()
        apart = (places[:, None] - places[None]).square().sum(-1)
        energy = self.net(torch.stack([apart, apart.sin(), apart.cos()], -1)).sum()
        return energy, -torch.autograd.grad(energy, places, create_graph=True)[0]


class SharedGradients(nn.Module):
    """Two pairs of weights have the same gradients each, and one has that of the result."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)
        self.shift = nn.Parameter(torch.zeros(5, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.a(x) + self.b(x))) + self.shift


def several_backwards(model: nn.Module, call: Any) -> Values:
    y = call(torch.randn(4, 8))
    y[0].sum().backward(retain_graph=True)
    first = [weight.grad.clone() for weight in model.parameters()]  # type: ignore[union-attr]
    y[1].square().sum().backward()
    return [*first, *gradients(model)]


def two_losses(model: nn.Module, call: Any) -> Values:
    y, z = call(torch.randn(4, 8))
    y.square().mean().backward(retain_graph=True)
    (y * z).sum().backward()
    return gradients(model)


def heads_in_turn(model: nn.Module, call: Any) -> Values:
    optimizer, seen = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5), []
    x = torch.randn(6, 8)
    for at in (0, 0, 1):
        call(x)[at].square().mean().backward()
        seen += [None if grad is None else grad.clone() for grad in gradients(model)]
        optimizer.step()
        optimizer.zero_grad()
    return [*seen, *model.parameters()]


def accumulation(model: nn.Module, call: Any) -> Values:
    x, shift = torch.randn(5, 8), torch.ones(5, 4)
    for _ in range(3):
        call(x).backward(shift)
    return [*gradients(model), shift]


def accumulation_of_shapes(model: nn.Module, call: Any) -> Values:
    for rows in (1, 3, 5):
        call(torch.randn(rows, 8)).square().mean().backward()
    first = [grad.clone() for grad in gradients(model) if grad is not None]
    model.zero_grad(set_to_none=False)
    call(torch.randn(2, 8)).sum().backward()
    return [*first, *gradients(model)]


def penalty(model: nn.Module, call: Any) -> Values:
    x = torch.randn(4, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(call(x).square().sum(), x, create_graph=True)
    (slope.norm(dim=1) - 1).square().mean().backward()
    return [slope, x.grad, *gradients(model), *(buffer.clone() for buffer in model.buffers()), torch.rand(2)]


def penalty_and_loss(model: nn.Module, call: Any) -> Values:
    x = torch.randn(4, 8, requires_grad=True)
    y, z, flat = call(x)
    (slope,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
    (slope.square().sum() + z.sum() + flat.sum()).backward()
    return [x.grad, *gradients(model)]


def penalty_of_one_head(model: nn.Module, call: Any) -> Values:
    x = torch.randn(4, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(call(x)[1].sum(), x, create_graph=True)
    slope.square().sum().backward()
    return gradients(model)


def forces(model: nn.Module, call: Any) -> Values:
    energy, force = call(torch.randn(5, 3))
    (force.square().mean() + energy * 0.1).backward()
    return [force, *gradients(model)]


def product_with_the_hessian(model: nn.Module, call: Any) -> Values:
    weights = list(model.parameters())
    slopes = torch.autograd.grad(call(torch.randn(4, 8)).square().sum(), weights, create_graph=True)
    return torch.autograd.grad(sum((slope.pow(3).sum() for slope in slopes), torch.zeros(())), weights)


def third_derivatives(model: nn.Module, call: Any) -> Values:
    x = torch.randn(4, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(call(x).sum(), x, create_graph=True)
    (curve,) = torch.autograd.grad(slope.square().sum(), x, create_graph=True)
    curve.square().sum().backward()
    return [x.grad, *gradients(model)]


def penalty_in_bfloat16(model: nn.Module, call: Any) -> Values:
    x = torch.randn(4, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = call(x)
    (slope,) = torch.autograd.grad(y.float().sum(), x, create_graph=True)
    slope.square().sum().backward()
    return [slope, *gradients(model)]


class Folded(nn.Module):
    """Folds its input, whose gradient is asked for; the sizes of the fold follow from one that varies."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x.view(2, -1, 8)).relu().view(-1, 32)).view(x.shape)


def gradients_of_folds(model: nn.Module, call: Any) -> Values:
    inputs = [torch.randn(rows, 8, requires_grad=True) for rows in (4, 6)]
    for x in inputs:
        call(x).square().sum().backward()
    return [*(x.grad for x in inputs), *gradients(model)]


class SeenInTwoWays(nn.Module):
    """A weight whose dimension is pairs of threes to one use, and threes of pairs to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.out = nn.Parameter(torch.randn(6 * 8)), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = (x[:4].view(2, 2, 8) * self.weight.view(2, 3, 8)[:, :1]).sum(0)
        threes = (x.view(3, 2, 8) * self.weight.view(3, 2, 8)[:, 1:]).sum(0)
        return self.out(threes + pairs)


def gradients_of_views(model: nn.Module, call: Any) -> Values:
    call(torch.randn(6, 8)).square().sum().backward()
    return gradients(model)


def spectral() -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(8, 16)), nn.Tanh(), nn.Linear(16, 8))


USES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "several backwards": (mlp, several_backwards),
    "two losses": (Heads, two_losses),
    "heads that take turns": (Heads, heads_in_turn),
    "gradients that two weights share": (SharedGradients, accumulation),
    "forces": (Energy, forces),
    "an input that is folded": (Folded, gradients_of_folds),
    "a weight seen in two ways": (SeenInTwoWays, gradients_of_views),
    "a penalty, of a net with dropout": (lambda: mlp(nn.Dropout(0.4)), penalty),
    "a penalty beside a loss": (Detached, penalty_and_loss),
}
MORE: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "calls of several shapes": (mlp, accumulation_of_shapes),
    "a penalty of one head": (Heads, penalty_of_one_head),
    "a penalty, of a net with batch norm": (lambda: mlp(nn.BatchNorm1d(16)), penalty),
    "a penalty, of a net that writes into what gradients depend on": (spectral, penalty),
    "a product with the Hessian": (mlp, product_with_the_hessian),
    "third derivatives": (mlp, third_derivatives),
}
ALL = {**USES, **MORE}


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("name", [*USES, *(pytest.param(name, marks=SLOW) for name in MORE)])
def test_gradients_are_those_of_the_unsharded_model(name: str, devices: int) -> None:
    make, use = ALL[name]
    agree(make, use, devices, tolerance=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if "Hessian" not in name])
def test_gradients_by_the_other_door(name: str) -> None:
    make, use = ALL[name]
    agree(make, use, door="backend", tolerance=1e-3)


@pytest.mark.slow
def test_a_penalty_in_bfloat16() -> None:
    agree(mlp, penalty_in_bfloat16, tolerance=3e-2)


def test_second_derivatives_are_divided() -> None:
    model = agree(
        lambda: nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8)), penalty, tolerance=1e-3
    )
    report = tpfx.report(model)
    assert max(report.bytes_per_device) * 2 < 1.1 * report.total_bytes
    assert report.graphs == 2 and report.collectives and not report.whole_ops


def test_backward_after_a_step_is_refused_as_eager_autograd_does() -> None:
    model = tpfx.compile(mlp(), ["cpu"] * 2)
    optimizer, y = torch.optim.SGD(model.parameters(), lr=0.1), model(torch.randn(4, 8))
    y.sum().backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation: 2\.weight is at version 1"):
        y.sum().backward()


def test_a_second_backward_without_retaining_is_refused() -> None:
    y = tpfx.compile(mlp(), ["cpu"] * 2)(torch.randn(4, 8))
    y.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


# Sparse gradients.


def train_table(model: nn.Module, call: Any) -> Values:
    ids, seen = torch.randint(0, 31, (4, 5)), []
    table, rest = next(model.parameters()), list(model.parameters())[1:]
    optimizers = torch.optim.SparseAdam([table]), torch.optim.SGD(rest, lr=0.1)
    for _ in range(2):
        call(ids).square().mean().backward()
        seen.append(table.grad)
        assert table.grad is not None and table.grad.is_sparse
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return [*seen, *model.parameters()]


@pytest.mark.parametrize("devices", DEVICES)
def test_the_gradient_of_a_sparse_table_is_sparse(devices: int) -> None:
    model = agree(
        lambda: nn.Sequential(nn.Embedding(31, 12, sparse=True), nn.Linear(12, 4)), train_table, devices
    )
    report = tpfx.report(model)
    assert max(report.bytes_per_device) * devices < 1.2 * report.total_bytes


# Recurrent nets.


class Recurrent(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.inner = nn.LSTM(8, 12, **settings)
        self.outer = nn.Linear(12 * (2 if settings.get("bidirectional") else 1), 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, (h, _) = self.inner(x)
        return self.outer(y), h


class Packed(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.GRU) -> None:
        super().__init__()
        self.into, self.rnn, self.out = nn.Linear(8, 12), kind(12, 16, batch_first=True), nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lengths = torch.tensor([5, 2, 4])
        packed = nn.utils.rnn.pack_padded_sequence(
            self.into(x), lengths, batch_first=True, enforce_sorted=False
        )
        return self.out(nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])


def train_recurrent(model: nn.Module, call: Any) -> Values:
    y, h = call(torch.randn(3, 5, 8))
    (y.square().mean() + h.sum()).backward()
    return [y, h, *gradients(model)]


def train_packed(model: nn.Module, call: Any) -> Values:
    y = call(torch.randn(3, 5, 8))
    y.square().mean().backward()
    return [y, *gradients(model)]


SETTINGS: list[dict[str, Any]] = [
    {"num_layers": 2, "dropout": 0.3, "batch_first": True},
    {},
    {"num_layers": 3, "bidirectional": True, "bias": False, "dropout": 0.2},
]


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("settings", [SETTINGS[0], *(pytest.param(one, marks=SLOW) for one in SETTINGS[1:])])
def test_an_lstm_trains(settings: dict[str, Any], devices: int) -> None:
    agree(lambda: Recurrent(**settings), train_recurrent, devices)


@pytest.mark.filterwarnings("ignore")  # Dynamo leaves parts of it out
@pytest.mark.parametrize("kind", [nn.GRU, pytest.param(nn.LSTM, marks=SLOW)])
def test_a_packed_sequence_trains(kind: type[nn.RNNBase]) -> None:
    agree(lambda: Packed(kind), train_packed)


class Counting(nn.Module):
    """A buffer that a call changes, and gradients that are computed with what it was then."""

    def __init__(self, factor: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.body, self.factor = mlp(), factor
        self.register_buffer("count", torch.arange(1.0, 9.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) * self.factor(self.count)


def counted(count: torch.Tensor) -> torch.Tensor:
    count += 1
    return count.exp().sqrt()


def counted_after(count: torch.Tensor) -> torch.Tensor:
    factor = count.clone()
    count.mul_(3)
    return factor


def counted_between(count: torch.Tensor) -> torch.Tensor:
    factor = count[:4].repeat(2) * 2
    count[2:].add_(count[0])
    return factor * count


@pytest.mark.parametrize("factor", [counted, counted_after, counted_between])
def test_gradients_are_computed_with_what_a_buffer_was(factor: Callable[..., Any]) -> None:
    """Not with what the call has made of it: torch's partitioner would compute anew from that."""
    x = torch.randn(4, 8)

    def use(model: nn.Module, call: Callable[..., Any]) -> Values:
        for _ in range(2):
            call(x).sum().backward()
        return gradients(model)

    agree(lambda: Counting(factor), use, 2, "compile")
