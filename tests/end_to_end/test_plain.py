"""Plain PyTorch modules, which no library knows: split, they compute what they computed before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.compare import largest_error
from tests.support.sharded import whole
from tpfx.kernels.slices import restride


def split(model: nn.Module, devices: int, **options: Any) -> nn.Module:
    return tpfx.compile(copy.deepcopy(model), ["cpu"] * devices, **options)


def check(model: nn.Module, *inputs: Any, devices: int = 2, calls: int = 1) -> tpfx.Report:
    """Compare a model with itself split, over several calls, buffers included."""
    model.train(model.training)
    plain, other = copy.deepcopy(model), split(model, devices)
    with torch.no_grad():
        for _ in range(calls):
            expected = plain(*copy.deepcopy(inputs))
            assert largest_error(expected, other(*copy.deepcopy(inputs))) < 1e-5
    for name, value in tpfx.full_state_dict(other).items():
        torch.testing.assert_close(value, plain.state_dict()[name], atol=1e-5, rtol=1e-5)
    return tpfx.report(other)


class Counting(nn.Module):
    """Reads a number from what is split."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.up(x))
        count = (hidden > 0).sum().item()
        torch._check(count >= 2)
        return self.down(hidden) + torch.arange(count).sum()


@pytest.mark.parametrize("devices", [2, 3])
def test_a_number_is_read_from_the_whole(devices: int) -> None:
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        report = check(Counting().eval(), torch.randn(4, 8), devices=devices)
    assert report.graphs == 1
    assert not report.whole_ops


class Written(nn.Module):
    """In-place ops, a view of an input as an output, a buffer that changes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.register_buffer("seen", torch.zeros(12))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.up(x)
        hidden.relu_()
        hidden[:, 1:3] += 1
        hidden[0].mul_(2)
        self.seen.add_(hidden.sum(0))
        self.count += 1
        return {"y": self.down(hidden) + self.seen.sum(), "view": x[:, ::2], "same": x, "n": self.count}


class Tied(nn.Module):
    """One submodule used twice, one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block = (
            nn.Embedding(30, 8),
            nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
        )
        self.again, self.head = self.block, nn.Linear(8, 30, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        return self.head(self.again(x + self.block(x)))


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * 2


class WithFunction(nn.Module):
    """A custom autograd.Function."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(Double.apply(torch.tanh(self.up(x))))


class Broken(nn.Module):
    """Graph breaks in the middle: Python looks at a number, and at a list."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.up(x))
        torch._dynamo.graph_break()
        if hidden.sum().item() > 1e9:
            hidden = hidden * 2
        torch._dynamo.graph_break()
        parts = [hidden[:, :6] * hidden.shape[1], hidden[:, 6:].flip(1)]
        return self.down(torch.cat(parts, 1))


class Branching(nn.Module):
    """A branch inside of the graph: it runs whole, and the report says so."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.up(x))
        return self.down(torch.cond(x.sum() > 0, lambda t: t * 2, lambda t: t - self.up.bias, (hidden,)))


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=12),
        nn.GroupNorm(4, 12),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 1, bias=False),
        nn.Conv2d(24, 8, 3, padding=1, groups=4),
        nn.ConvTranspose2d(8, 6, 2, stride=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True, **options)

    def forward(self, x: torch.Tensor) -> Any:
        return self.attention(x, x, x, need_weights=True)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(30, 8), kind(8, 12, num_layers=2, batch_first=True, **options)
        self.head = nn.Linear(24 if options.get("bidirectional") else 12, 30)

    def forward(self, ids: torch.Tensor) -> Any:
        states, last = self.rnn(self.embed(ids))
        return self.head(states), last


IDS = torch.arange(10).view(2, 5) * 3
MODULES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "written": (Written, (torch.randn(4, 8),)),
    "tied": (Tied, (IDS,)),
    "function": (WithFunction, (torch.randn(4, 8),)),
    "broken": (Broken, (torch.randn(4, 8),)),
    "branching": (Branching, (torch.randn(4, 8),)),
    "convnet": (convnet, (torch.randn(2, 3, 8, 8),)),
    "attention": (Attention, (torch.randn(2, 5, 16),)),
    "attention_other": (lambda: Attention(kdim=16, vdim=16, add_bias_kv=True), (torch.randn(2, 5, 16),)),
    "transformer": (
        lambda: nn.Transformer(16, 4, 2, 2, 32, batch_first=True),
        (torch.randn(2, 5, 16), torch.randn(2, 3, 16)),
    ),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, norm_first=True), 2),
        (torch.randn(5, 2, 16),),
    ),
    "convolution_3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 6, 2), nn.BatchNorm3d(6), nn.Flatten(), nn.Linear(48, 5)),
        (torch.randn(2, 2, 3, 3, 3),),
    ),
    "lstm": (lambda: Recurrent(nn.LSTM), (IDS,)),
    "lstm_both_ways": (lambda: Recurrent(nn.LSTM, bidirectional=True), (IDS,)),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize(
    ("name", "devices"),
    [
        pytest.param(name, devices, marks=[pytest.mark.slow] if (name, devices) == ("transformer", 3) else [])
        for name in MODULES
        for devices in (2, 3)
    ],
)
def test_eval(name: str, devices: int) -> None:
    build, inputs = MODULES[name]
    check(build().eval(), *inputs, devices=devices, calls=2)


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_what_dynamo_does_not_capture_runs_whole_and_says_so(kind: type[nn.RNNBase]) -> None:
    """What is around it is divided, and a model that is nothing else says that all ran whole."""
    with pytest.warns(UserWarning, match="Recurrent: rnn.* not divided: code that Dynamo leaves out"):
        report = check(Recurrent(kind).eval(), IDS)
    assert report.graphs and not report.whole_calls
    assert not any(name.startswith(("embed", "head.w")) for one in report.undivided for name in one.names)
    with pytest.warns(
        UserWarning, match=f"{kind.__name__} ran whole, on cpu: Dynamo captured no graph of it"
    ):
        report = check(kind(8, 12).eval(), torch.randn(3, 2, 8))
    assert not report.graphs and report.whole_calls


@pytest.mark.parametrize("devices", [2, 5])
def test_batch_norm_in_training(devices: int) -> None:
    check(convnet().train(), torch.randn(3, 3, 8, 8), devices=devices, calls=3)


@pytest.mark.parametrize("devices", [2, 3])
def test_dropout_draws_what_the_unsharded_model_draws(devices: int) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.3), nn.ReLU(), nn.Linear(32, 16), nn.Dropout(0.5))
    split_model, x = split(model.train(), devices), torch.randn(64, 16)
    with torch.no_grad():
        for seed in range(5):
            drawn = []
            for each in (model, split_model):
                torch.manual_seed(seed)
                drawn.append((each(x), torch.rand(3)))
            assert largest_error(*drawn) < 1e-5
            assert torch.equal(drawn[0][1], drawn[1][1])  # the caller's generator goes on alike


class Noisy(nn.Module):
    """Random numbers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.up(x) + torch.randn(12) + torch.rand_like(x).sum()
        hidden = hidden * torch.bernoulli(torch.full_like(hidden, 0.5)) + torch.randint(0, 5, (4, 12))
        return self.down(hidden[torch.randperm(4)]) + torch.multinomial(torch.ones(8), 8)


def test_random_numbers_of_every_kind() -> None:
    model = Noisy().eval()
    split_model, x = split(model, 3), torch.randn(4, 8)
    with torch.no_grad():
        results = []
        for each in (model, split_model):
            torch.manual_seed(3)
            results.append(each(x))
    assert largest_error(*results) < 1e-5


class Views(nn.Module):
    """Results that are views of the input, of every kind, beside one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pairs = x.view(x.shape[0], x.shape[1], 3, 2)
        views = (pairs.select(2, 2), x[:, 1:], x.transpose(0, 1), x[:, :, None].expand(-1, -1, 2, -1), pairs)
        return self.down(torch.relu(self.up(pairs.flatten(2)))), *views


@pytest.mark.parametrize("train", [False, True])
def test_views_of_an_input_with_sizes_that_vary(train: bool) -> None:
    plain = Views()
    other = split(plain, 2)
    for shape in ((2, 3, 6), (4, 5, 6)):
        x = torch.randn(shape)
        sides = []
        for model in (plain, other):
            own = x.clone().requires_grad_(train)
            with torch.set_grad_enabled(train):
                results = model(own)
                if train:
                    sum(result.square().sum() for result in results).backward()
            sides.append([*results, own.grad])
        for left, right in zip(*sides, strict=True):
            assert (left is None) == (right is None)
            if left is not None:
                torch.testing.assert_close(whole(right), left)
    with torch.no_grad():
        x = torch.randn(2, 3, 6)
        before = x.clone()
        other(x)[2].zero_()
        assert torch.equal(x[:, 1:], torch.zeros(2, 2, 6)) and torch.equal(x[:, :1], before[:, :1])


@pytest.mark.parametrize(
    ("stride", "offset"), [((6, 3, 1), 0), ((1, 2, 4), 0), ((12, 6, 1), 4), ((3, 0, 1), 2), ((60, 9, 2), 1)]
)
def test_relaid_has_the_numbers_and_lies_as_told(stride: tuple[int, ...], offset: int) -> None:
    tensor = torch.randn(2, 2, 3)
    tensor = tensor[:, :1].expand(2, 2, 3) if 0 in stride else tensor
    made = restride(tensor, stride, offset)
    assert torch.equal(made, tensor) and (made.stride(), made.storage_offset()) == (stride, offset)


class Folded(nn.Module):
    """A result of a graph, before a break, in which a batch that varies and split heads are one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        heads = self.q(x).view(batch, length, 4, 8).transpose(1, 2).reshape(batch * 4, length, 8)
        heads = heads / heads.norm(dim=-1, keepdim=True)
        if self.training:  # planned in one piece, so that the heads are split
            torch._dynamo.graph_break()
        mixed = (heads @ heads.transpose(1, 2) @ heads).reshape(batch, 4, length, 8)
        return self.o(mixed.transpose(1, 2).reshape(batch, length, 32))


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("train", [False, True])
def test_a_split_inside_of_a_dimension_that_varies_is_joined_for_the_caller(
    train: bool, devices: int
) -> None:
    plain = Folded().train()
    other = split(plain, devices, example_inputs=(torch.randn(2, 5, 16),))
    assert other.get_parameter("q.weight").placement
    for batch in (2, 3):
        x = torch.randn(batch, 5, 16)
        with torch.set_grad_enabled(train):
            results = [model(x) for model in (plain, other)]
        torch.testing.assert_close(whole(results[1]), results[0])
        if train:
            for result in results:
                result.square().sum().backward()
            for one, two in zip(plain.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(whole(two.grad), one.grad)


class Scaled(nn.Module):
    """A model that takes a Python number."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)) * scale)


def test_a_number_that_varies_is_no_reason_to_run_whole() -> None:
    plain = Scaled()
    model = tpfx.compile(copy.deepcopy(plain), ["cpu", "cpu"])
    for count, scale in enumerate((1.0, 2.5, -3.0), start=1):
        x = torch.randn(4, 64)
        torch.testing.assert_close(model(x, scale), plain(x, scale))
        assert tpfx.report(model).graphs == count
        assert [one.kind for one in tpfx.report(model).collectives][:1] == ["all_reduce"]


def test_a_call_that_dynamo_leaves_out_is_in_the_report() -> None:
    plain, x = Scaled(), torch.randn(4, 64)
    model = tpfx.compile(copy.deepcopy(plain), ["cpu", "cpu"])
    for scale in (1.0, 2.0):
        model(x, scale)
    assert tpfx.report(model).whole_calls == 0
    warns = pytest.warns(UserWarning, match="Scaled ran whole, on cpu: none of its graphs fits this call")
    with torch.compiler.set_stance("eager_on_recompile"), warns:
        torch.testing.assert_close(model(x, 3.0), plain(x, 3.0))
    report = tpfx.report(model)
    assert (report.graphs, report.whole_calls) == (2, 1)
    assert "calls that ran whole" in str(report)


def test_no_number_of_ways_to_call_a_model_has_it_run_whole() -> None:
    plain, x = Scaled(), torch.randn(4, 64)
    model = tpfx.compile(copy.deepcopy(plain), ["cpu", "cpu"])
    with torch._dynamo.config.patch(recompile_limit=2, accumulated_recompile_limit=3), torch.no_grad():
        for scale in (1.0, 2.0, 3.0, 4.0, 5.0):
            torch.testing.assert_close(model(x, scale), plain(x, scale))
    assert (tpfx.report(model).graphs, tpfx.report(model).whole_calls) == (5, 0)


class Broken(nn.Module):
    """Two graphs, of which Dynamo keeps the second with code that all models of the class share."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, width), nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        torch._dynamo.graph_break()
        return self.down(x.relu())


def by_backend(model: nn.Module) -> nn.Module:
    compiled: nn.Module = torch.compile(model, backend="tpfx", options={"devices": ["cpu", "cpu"]})
    return compiled


@pytest.mark.parametrize("door", [lambda model: tpfx.compile(model, ["cpu", "cpu"]), by_backend])
@pytest.mark.parametrize(
    "make", [Broken, lambda width: nn.Sequential(nn.Linear(8, width), nn.Linear(width, 8))]
)
def test_no_number_of_models_has_the_next_run_whole(make: Any, door: Any) -> None:
    """Sequential's forward is one that Dynamo calls from a frame of its own, the same for all of them."""
    kept = []
    with torch._dynamo.config.patch(recompile_limit=2, accumulated_recompile_limit=3), torch.no_grad():
        for width in (16, 24, 32, 40, 48):
            model, x = make(width), torch.randn(3, 8)
            expected = model(x)
            kept.append(door(model))
            torch.testing.assert_close(kept[-1](x), expected)
            report = tpfx.report(model)
            assert max(report.bytes_per_device) < 0.6 * report.total_bytes


def test_models_of_other_sizes_are_split_as_if_alone() -> None:
    for width in (64, 128, 32, 96):
        plain = Scaled(width)
        model = tpfx.compile(copy.deepcopy(plain), ["cpu", "cpu"])
        for length in (3, 5):
            x = torch.randn(length, width)
            with torch.no_grad():
                torch.testing.assert_close(model(x, 0.5), plain(x, 0.5))
        assert tpfx.report(model).graphs == 1
