"""Random numbers in checkpoints, branches, loops and custom ops are those of the unsharded model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import tpfx
from tests.support.architectures import tiny as tiny_of
from tests.support.models import inputs, tiny
from tests.support.processes import launch
from tests.support.random_nets import INNER, Drawing, assert_same, steps
from tests.support.sharded import whole

slow = pytest.mark.slow
# What a reentrant checkpoint says to who asks for no gradients.
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
REFUSED = ("new_draws_in_the_backward_pass", "inside_of_attention")
# Each another mechanism; the others are slow.
FEW = ("checkpointed", "branch", "scanned", "custom_ops", "checkpointed_branch", "unused")
NETS = [name for name in INNER if name not in REFUSED]


def split(name: str, devices: int, door: str = "compile") -> torch.nn.Module:
    if door == "compile":
        return tpfx.compile(Drawing(name), ["cpu"] * devices)
    return torch.compile(Drawing(name), backend="tpfx", options={"devices": ["cpu"] * devices})


@pytest.mark.parametrize(
    ("name", "devices", "train"),
    [
        pytest.param(name, devices, train, marks=[] if name in FEW and (devices == 2) == train else slow)
        for name in NETS
        for devices in (2, 3)
        for train in (True, False)
        if not (name == "looped" and train)  # a loop of an unknown number of steps does not train
    ],
)
def test_draws(name: str, devices: int, train: bool) -> None:
    if name == "scanned" and train and torch.__version__ < "2.13":
        pytest.skip("torch before 2.13 cannot compile this backward, for any backend")
    assert_same(steps(Drawing(name), 3, train), steps(split(name, devices), 3, train))


@pytest.mark.parametrize("devices", [2, pytest.param(3, marks=slow)])
@pytest.mark.parametrize(
    "name", ["checkpointed", *(pytest.param(n, marks=slow) for n in ("branch", "scanned"))]
)
def test_twenty_calls(name: str, devices: int) -> None:
    if name == "scanned" and torch.__version__ < "2.13":
        pytest.skip("torch before 2.13 cannot compile this backward, for any backend")
    assert_same(steps(Drawing(name), 20, True), steps(split(name, devices), 20, True))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("checkpointed", "branch") else slow) for name in FEW]
)
def test_backend(name: str) -> None:
    assert_same(steps(Drawing(name), 3, True), steps(split(name, 2, "backend"), 3, True))


def test_one_seed_gives_the_same_numbers_again() -> None:
    model = split("checkpointed", 2)
    first = steps(model, 2, True)
    for _ in range(20):
        assert_same(first, steps(model, 2, True))


def test_processes(two_processes) -> None:
    expected = steps(Drawing("checkpointed"), 3, True), steps(Drawing("branch"), 3, False)
    for checkpoint, branch in two_processes.results("random_numbers"):
        assert_same(expected[0], checkpoint)
        assert_same(expected[1], branch)


@slow
@pytest.mark.parametrize("count", [2, 3])
def test_twenty_calls_of_processes(count: int, tmp_path: Path) -> None:
    names = [name for name in NETS if name != "looped"]
    launch(count, "-m", "tests.support.random_nets", str(tmp_path / "found"), "20", *names)
    for rank in range(count):
        found = torch.load(tmp_path / f"found.{rank}", weights_only=False)
        for (name, train), each in found.items():
            assert_same(steps(Drawing(name), 20, train), each)


def test_other_draws_in_the_backward_pass_are_refused() -> None:
    model = split("new_draws_in_the_backward_pass", 2)
    with pytest.raises(tpfx.TpfxError, match=r"random_nets.py:\d+ draws .* preserve_rng_state=False"):
        steps(model, 1, True)
    assert_same(steps(Drawing("new_draws_in_the_backward_pass"), 1, False), steps(model, 1, False))


def test_draws_inside_of_flex_attention_are_refused() -> None:
    with pytest.raises(tpfx.TpfxError, match=r"inside of flex_attention, by aten\.\w+.*: draw outside of it"):
        steps(split("inside_of_attention", 2), 1, False)


def test_weights_around_a_branch_that_draws_are_divided_and_those_inside_named() -> None:
    model = split("branch", 3)
    with pytest.warns(UserWarning, match=r"extra.* cond hands the whole of it .* outside of that branch"):
        steps(model, 1, False)
    report = tpfx.report(model)
    assert not report.whole_ops and not report.whole_calls
    undivided = {name for one in report.undivided for name in one.names}
    assert "extra.weight" in undivided and undivided.isdisjoint({"up.weight", "down.weight"})


def test_an_op_of_which_nothing_is_known_runs_once() -> None:
    calls: list[int] = []

    @torch.library.custom_op("tpfx_tests::counted", mutates_args=())
    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x * 2

    counted.register_fake(lambda x: torch.empty_like(x))
    INNER["counted"] = lambda net, h: counted(h)
    model = split("counted", 3)
    model.inner = INNER.pop("counted")
    steps(model, 4, False)
    assert len(calls) == 4


@pytest.mark.parametrize("device_compiler", ["native", "eager"])
def test_an_op_of_which_nothing_is_known_returns_what_values_tell(device_compiler: str) -> None:
    """As the boxes that are left of a detection; of some images there are none."""

    @torch.library.custom_op("tpfx_tests::above", mutates_args=())
    def above(x: torch.Tensor, least: float) -> list[torch.Tensor]:
        kept = (x > least).nonzero()[:, 0]
        return [kept, x[kept] * 2]

    @above.register_fake
    def _(x: torch.Tensor, least: float) -> list[torch.Tensor]:
        size = torch.library.get_ctx().new_dynamic_size()
        return [x.new_empty(size, dtype=torch.int64), x.new_empty(size)]

    @torch.library.custom_op("tpfx_tests::first_above", mutates_args=())
    def first_above(x: torch.Tensor, least: float) -> torch.Tensor:
        return (x > least).nonzero()[:, 0]

    @first_above.register_fake
    def _(x: torch.Tensor, least: float) -> torch.Tensor:
        return x.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)

    class Picking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = torch.nn.Linear(8, 64)

        def forward(self, x: torch.Tensor, least: float) -> tuple[torch.Tensor, ...]:
            values = self.into(x).flatten()
            which, kept = above(values, least)
            return which, kept, values[first_above(values, least)].sin()

    torch.manual_seed(0)
    plain, x = Picking(), torch.randn(2, 8)
    model = tpfx.compile(copy.deepcopy(plain), ["cpu"] * 3, device_compiler=device_compiler)
    with torch.no_grad():
        for least in (0.5, -9.0, 9.0):
            for expected, got in zip(plain(x, least), model(x, least), strict=True):
                torch.testing.assert_close(got, expected)
    assert not tpfx.report(model).whole_calls


# transformers

DROPOUT: dict[str, dict[str, float]] = {
    "gpt2": {},
    "llama": {"attention_dropout": 0.2},
    "bert": {},  # its attention drops nothing, and is split
    "t5": {},
}


def transformer(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    if name in ("bert", "t5"):
        model, given = tiny_of(name, "masked" if name == "bert" else "seq2seq")
        return model, {**given, "labels": given["input_ids"].clone()}
    model = tiny(name, num_hidden_layers=2, **DROPOUT[name])
    given = inputs(model)
    return model, {**given, "labels": given["input_ids"].clone()}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, pytest.param(True, marks=slow)])
@pytest.mark.parametrize("devices", [2, pytest.param(3, marks=slow)])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "gpt2" else slow) for name in DROPOUT]
)
def test_gradient_checkpointing(name: str, devices: int, reentrant: bool) -> None:
    plain, given = transformer(name)
    plain.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model = tpfx.compile(copy.deepcopy(plain).train(), ["cpu"] * devices)
    for step in range(3):
        losses = []
        for each in (plain.train(), model):
            torch.manual_seed(step)
            each.zero_grad()
            losses.append(each(**given).loss)
            losses[-1].backward()
        torch.testing.assert_close(losses[1], losses[0])
    for (name, left), right in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert (left.grad is None) == (right.grad is None), name
        if left.grad is not None:
            torch.testing.assert_close(whole(right.grad), left.grad, rtol=1e-3, atol=1e-5)
