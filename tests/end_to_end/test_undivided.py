"""Nothing lies whole without a word: weights that no call has reached, and those that no graph divides."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import tpfx
from tests.support.nets import TwoTowers
from tests.support.sharded import CPUS
from tpfx.frontend import undivided

IDS, IMAGE = torch.arange(24).view(4, 6), torch.ones(4, 3, 8, 8)


def largest(model: torch.nn.Module) -> float:
    """The largest part of all bytes on a device, times the number of devices."""
    report = tpfx.report(model)
    return max(report.bytes_per_device) * len(report.devices) / report.total_bytes


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("train", [True, False])
def test_a_model_called_with_text_alone(devices: int, train: bool) -> None:
    plain = TwoTowers()
    model = tpfx.compile(copy.deepcopy(plain), ["cpu"] * devices)
    optimizers = [torch.optim.AdamW(each.parameters()) for each in (plain, model)]
    for given in ((IDS,), (IDS, IMAGE), (IDS,)):
        with torch.set_grad_enabled(train):
            expected, found = plain(*given), model(*given)
        torch.testing.assert_close(found, expected)
        assert largest(model) <= 1.1
        for loss, optimizer in zip((expected, found), optimizers, strict=True) if train else ():
            loss.square().mean().backward()
            optimizer.step()
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).full(), weight.detach())


@pytest.mark.parametrize(("devices", "train"), [(2, True), pytest.param(3, False, marks=pytest.mark.slow)])
def test_a_model_called_with_text_alone_by_the_other_door(devices: int, train: bool) -> None:
    """An optimizer made before has all weights from then on; a graph break leaves some for the next graph."""

    class Both(TwoTowers):
        def forward(self, ids: Tensor, image: Tensor | None = None) -> Tensor:
            text = self.text[:2](ids)
            torch._dynamo.graph_break()
            text = self.text[2:](text).mean(1)
            return text if image is None else text + self.image(image) * self.image.scale

    plain = Both()
    model = copy.deepcopy(plain)
    optimizers = [torch.optim.AdamW(each.parameters()) for each in (plain, model)]
    compiled = torch.compile(model, backend="tpfx", options={"devices": ("cpu",) * devices})
    for given in ((IDS,), (IDS, IMAGE), (IDS,)):
        with torch.set_grad_enabled(train):
            expected, found = plain(*given), compiled(*given)
        torch.testing.assert_close(found, expected)
        assert largest(model) <= 1.1
        for loss, optimizer in zip((expected, found), optimizers, strict=True) if train else ():
            loss.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).full(), weight.detach())  # type: ignore[operator]


@pytest.mark.parametrize("devices", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_batch_norm_in_eval_is_divided_with_what_is_around_it(devices: int) -> None:
    """On CPU it also returns statistics of no elements, which its channels are not."""
    convolutions = (nn.Conv2d(64, 64, 3, bias=False) for _ in range(2))
    plain = nn.Sequential(next(convolutions), nn.BatchNorm2d(64), nn.ReLU(), next(convolutions)).eval()
    with torch.no_grad():
        plain[1].running_mean.normal_()
        plain[1].running_var.uniform_(0.5, 2)
        model, x = tpfx.compile(copy.deepcopy(plain), ["cpu"] * devices), torch.randn(2, 64, 6, 6)
        torch.testing.assert_close(model(x), plain(x), atol=1e-5, rtol=1e-4)
    assert [one.kind for one in tpfx.report(model).collectives] == ["all_reduce"]


@torch.library.custom_op("tpfx_test::times", mutates_args=())
def times(x: Tensor, weight: Tensor) -> Tensor:
    """A product that no rule is known of."""
    return x @ weight


@times.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[1])


class Reasons(nn.Module):
    """Weights that stay whole, or in storage, each for a reason of its own; two layers are divided."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.ruleless = nn.Parameter(torch.randn(32, 32) / 6)
        self.taken = nn.Parameter(torch.randn(32, 32))
        self.left, self.rnn = nn.Linear(32, 32), nn.GRU(32, 16)
        self.spare = nn.Linear(32, 64)

    @torch.compiler.disable
    def left_out(self, x: Tensor) -> Tensor:
        return self.left(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.up(x).relu())
        x = torch.ops.tpfx_test.times(x, self.ruleless) + torch.take(self.taken, torch.arange(32))
        return self.rnn(self.left_out(x))[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def told() -> Iterator[tuple[Reasons, list[str]]]:
    """A model that has been called three times, and its warnings."""
    plain, x = Reasons(), torch.randn(2, 7, 32)
    model = tpfx.compile(copy.deepcopy(plain), CPUS)
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        for _ in range(3):
            torch.testing.assert_close(model(x), plain(x))
    yield model, [str(one.message) for one in caught if "not divided" in str(one.message)]


REASONS = {
    "ruleless": ("no rule says what tpfx_test.times.default does", "tpfx.register_rule"),
    "taken": ("aten.take.default needs the whole of it", "an op that computes the same"),
    "left.weight": ("code that Dynamo leaves out of every graph uses it", "TORCH_LOGS=graph_breaks"),
    "spare.weight": ("no call has used it yet", "the first call that does"),
    "down.bias": ("it is small", "a plan of your own"),
}


@pytest.mark.parametrize("name", REASONS)
def test_the_report_says_why_and_what_helps(told: tuple[Reasons, list[str]], name: str) -> None:
    report, (reason, remedy) = tpfx.report(told[0]), REASONS[name]
    (found,) = [one for one in report.undivided if name in one.names]
    assert reason in found.reason and remedy in found.remedy
    assert found.stored_evenly == (name.partition(".")[0] in ("left", "spare"))
    assert not any("up.weight" in one.names or "down.weight" in one.names for one in report.undivided)
    assert "weights that are not divided" in str(report) and found.named in str(report)


def test_a_weight_that_no_graph_has_was_put_in_place_or_is_used_by_code_that_is_left_out() -> None:
    model = tpfx.compile(nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 8)), CPUS)
    with torch.no_grad():
        model(torch.ones(2, 8))
    model[1] = nn.Linear(64, 8)
    (found,) = [one for one in tpfx.report(model).undivided if "1.weight" in one.names]
    assert "no graph has it" in found.reason and found.remedy.startswith("call the model once; TORCH_LOGS")


def test_one_warning_for_each_reason_that_costs_something(told: tuple[Reasons, list[str]]) -> None:
    reasons = [REASONS[name] for name in ("ruleless", "taken", "left.weight")]
    for reason, remedy in reasons:
        (found,) = [message for message in told[1] if reason in message]
        assert remedy in found and found.startswith("Reasons: ") and " KiB of " in found
    assert len(told[1]) == len(reasons)


@pytest.mark.parametrize("matters", [1, 1 << 20])
def test_what_is_best_undivided_is_warned_of_where_it_is_large(
    matters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias of 24 numbers is more than 1% of this model, and nothing to a device."""
    monkeypatch.setattr(undivided, "MATTERS", matters)
    model = tpfx.compile(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 24)), CPUS)
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        model(torch.ones(2, 8))
    (one,) = tpfx.report(model).undivided
    assert one.bytes > 0.01 * tpfx.report(model).total_bytes and "it is small" in one.reason
    told = [str(one.message) for one in caught if "not divided" in str(one.message)]
    assert len(told) == (matters == 1) and all("a plan of your own" in text for text in told)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(
            nn.ConvTranspose1d(16, 32, 3, groups=2), nn.ConvTranspose1d(32, 16, 3, groups=2)
        ),
        lambda: nn.Sequential(nn.Conv1d(16, 32, 1), nn.Upsample(scale_factor=2), nn.Conv1d(32, 16, 1)),
        lambda: nn.Sequential(
            nn.Unflatten(1, (16, 1)),
            nn.Conv2d(16, 32, 1),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(32, 16, 1),
        ),
    ],
    ids=["grouped transposed", "upsampled", "upsampled image"],
)
def test_what_is_divided_by_now(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    plain, x = make().eval(), torch.randn(3, 16, 6)
    model = tpfx.compile(copy.deepcopy(plain), CPUS)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))
    assert largest(model) < 1.1 and not tpfx.report(model).whole_ops


@pytest.mark.parametrize(
    ("kind", "groups", "devices", "train"),
    [
        pytest.param(*way, marks=[] if way == (nn.ConvTranspose1d, 4, 3, True) else pytest.mark.slow)
        for way in [
            (kind, groups, devices, train)
            for kind in (nn.Conv1d, nn.ConvTranspose1d, nn.Conv2d, nn.ConvTranspose2d, nn.ConvTranspose3d)
            for groups, devices in ((2, 3), (3, 2), (4, 3), (3, 4))
            for train in (True, False)
        ]
    ],
)
def test_groups_of_channels_that_do_not_divide_evenly(
    kind: type[nn.Module], groups: int, devices: int, train: bool
) -> None:
    torch.manual_seed(0)
    slides = int(kind.__name__[-2])
    plain = nn.Sequential(kind(48, 96, 3, groups=groups), nn.ReLU(), kind(96, 48, 3, groups=groups))
    x = torch.randn(2, 48, *[6] * slides)
    model = tpfx.compile(copy.deepcopy(plain), ["cpu"] * devices)
    with torch.set_grad_enabled(train):
        expected, found = plain(x), model(x)
    torch.testing.assert_close(found, expected)
    for loss in (expected, found) if train else ():
        loss.square().mean().backward()
    for left, right in zip(plain.parameters(), model.parameters(), strict=True) if train else ():
        torch.testing.assert_close(right.grad.full(), left.grad)  # type: ignore[operator, union-attr]
    assert largest(model) < 1.1 and not tpfx.report(model).whole_ops


class Modes(nn.Module):
    """In eval through an op that has no rule, in training without."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.out = nn.Parameter(torch.randn(32, 64) / 6), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        inner = x @ self.weight if self.training else torch.ops.tpfx_test.times(x, self.weight)
        return self.out(inner.relu())  # type: ignore[no-any-return]


def test_what_one_graph_needs_whole_another_may_divide() -> None:
    plain, x = Modes(), torch.randn(4, 32)
    model = tpfx.compile(copy.deepcopy(plain), CPUS)
    for train in (False, True, False):
        plain.train(train), model.train(train)
        with torch.set_grad_enabled(train):
            torch.testing.assert_close(model(x), plain(x))
    assert largest(model) < 1.1


def test_a_copy_knows_why_and_warns_again() -> None:
    model = tpfx.compile(Modes().eval(), CPUS, example_inputs=(torch.randn(4, 32),))
    copied = copy.deepcopy(model)
    assert [one.reason for one in tpfx.report(copied).undivided] == [
        one.reason for one in tpfx.report(model).undivided
    ]
    with torch.no_grad(), pytest.warns(UserWarning, match=r"Modes: weight, 8 KiB .* no rule"):
        copied(torch.randn(4, 32))
