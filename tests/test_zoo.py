"""Listed architectures, tiny and random, split and compared with themselves; `-m slow`: all of them."""

from __future__ import annotations

import pytest

from benchmarks.architectures import LISTED
from benchmarks.zoo import SPLIT, check, line

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
ALL = [(task, arch, devices) for task, archs in LISTED.items() for arch in archs for devices in (2, 3)]


@pytest.mark.parametrize(
    ("task", "arch", "devices"),
    [pytest.param(*one, marks=[] if SAMPLE.get(one[:2]) == one[2] else [pytest.mark.slow]) for one in ALL],
)
def test_architecture(task: str, arch: str, devices: int) -> None:
    outcome = check(task, arch, devices)
    assert outcome.right, line(outcome)
    assert not outcome.whole_ops
    if (task, arch) in SAMPLE:
        assert outcome.split >= SPLIT
