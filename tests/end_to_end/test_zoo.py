"""Listed architectures, tiny and random, split and compared with themselves; `-m slow`: all of them."""

from __future__ import annotations

import pytest
import torch

from benchmarks.zoo import SPLIT, Way, check, line
from tests.support.architectures import LISTED
from tests.support.compare import gradient_error

# One of each kind, and the devices to split it over: sinks, convolutions, states, experts, encoders, images.
SAMPLE = {
    ("causal", "granite_swa"): 3,
    ("causal", "lfm2"): 3,
    ("causal", "mamba"): 2,
    ("causal", "qwen3_moe"): 3,
    ("masked", "bert"): 3,
    ("masked", "fnet"): 2,
    ("seq2seq", "t5"): 3,
    ("image", "vit"): 3,
    ("image", "mobilenet_v1"): 2,
}
LONG = ("mamba", "granite_swa")  # half a minute each
ALL = [(task, arch, devices) for task, archs in LISTED.items() for arch in archs for devices in (2, 3)]


@pytest.mark.parametrize(
    ("task", "arch", "devices"),
    [
        pytest.param(
            *one, marks=[] if one[1] not in LONG and SAMPLE.get(one[:2]) == one[2] else [pytest.mark.slow]
        )
        for one in ALL
    ],
)
def test_architecture(task: str, arch: str, devices: int) -> None:
    outcome = check(task, arch, devices)
    assert outcome.right, line(outcome)
    assert not outcome.whole_ops
    if (task, arch) in SAMPLE:
        assert outcome.split >= SPLIT


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [Way(backend=True), Way(device_compiler="inductor"), Way(device_compiler="eager")],
    ids=["backend", "inductor", "eager"],
)
@pytest.mark.parametrize(("task", "arch"), SAMPLE)
def test_the_sample_in_other_ways(task: str, arch: str, way: Way) -> None:
    outcome = check(task, arch, SAMPLE[task, arch], way)
    assert outcome.right, line(outcome)
    assert not outcome.whole_ops and outcome.split >= SPLIT


# Routers whose gradient comes by way of sums that the forward part saves; convolutions.
TRAINED = [("causal", "deepseek_v2"), ("image", "mobilenet_v1")]


@pytest.mark.parametrize(
    ("task", "arch"),
    [
        pytest.param(task, arch, marks=[] if (task, arch) in TRAINED else [pytest.mark.slow])
        for task, archs in LISTED.items()
        for arch in archs
    ],
)
def test_gradients_of_an_architecture(task: str, arch: str) -> None:
    outcome = check(task, arch, 2, Way(train=True))
    assert outcome.right, line(outcome)


def test_gradient_errors_are_relative_and_see_everything() -> None:
    one = {"a": torch.tensor([10.0, 1.0]), "b": torch.tensor([1.0]), "c": None}
    assert gradient_error(one, one | {"c": torch.zeros(3)}) == 0.0
    assert gradient_error(one, one | {"a": torch.tensor([10.0, 2.0])}) == pytest.approx(0.1)
    assert gradient_error(one, one | {"b": torch.tensor([float("nan")])}) == float("inf")
    assert gradient_error(one, one | {"b": None}) == 1.0
    assert gradient_error(one, one | {"c": torch.ones(1)}) > 1.0
