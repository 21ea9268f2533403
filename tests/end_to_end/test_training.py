"""Training a split model: losses, gradients, and weights after some steps are those of the unsharded one."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.architectures import tiny as tiny_of
from tests.support.models import inputs, tiny
from tests.support.nets import Net
from tests.support.sharded import whole

CAUSAL = ("llama", "gpt2", "opt", "bloom", "mixtral")
# Ernie's router has a gradient by way of partial sums that the forward part saves.
OTHERS = (("seq2seq", "t5"), ("masked", "bert"), ("image", "vit"), ("causal", "ernie4_5_moe"))


def causal(name: str, **sizes: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    model = tiny(name, **sizes)
    given = inputs(model)
    return model.train(), {**given, "labels": given["input_ids"].clone()}


def other(task: str, arch: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    model, given = tiny_of(arch, task)
    if task == "image":
        return model.train(), {**given, "labels": torch.tensor([0, 1])}
    return model.train(), {**given, "labels": given["input_ids"].clone()}


def compare_gradients(model: nn.Module, split: nn.Module, given: dict[str, torch.Tensor]) -> None:
    """One step of both from the same random numbers; gradients relative to the largest of each weight."""
    losses = []
    for each in (model, split):
        torch.manual_seed(5)
        loss = each(**given).loss
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for (name, plain), weight in zip(model.named_parameters(), split.parameters(), strict=True):
        assert (plain.grad is None) == (weight.grad is None), name
        if plain.grad is not None:
            scale = max(float(plain.grad.abs().max()), 1e-4)
            assert float((whole(weight.grad) - plain.grad).abs().max()) < 1e-4 * max(scale, 1.0), name


GRADIENTS = [(name, *split) for name in CAUSAL for split in ((2, 2), (3, 1), (3, 2))]
SAMPLE = (("gpt2", 3, 1), ("bloom", 3, 1), ("mixtral", 3, 1))


@pytest.mark.parametrize(
    ("name", "devices", "layers"),
    [
        pytest.param(*one, marks=[] if one in SAMPLE else [pytest.mark.slow])
        for one in GRADIENTS
        if one != ("llama", 2, 2)  # whose collectives are counted too, below
    ],
)
def test_causal_gradients(name: str, devices: int, layers: int) -> None:
    model, given = causal(name, num_hidden_layers=layers)
    split = tpfx.compile(causal(name, num_hidden_layers=layers)[0], ["cpu"] * devices)
    compare_gradients(model, split, given)


@pytest.mark.parametrize(
    ("task", "arch", "devices"),
    [
        # The gradients of expert layers are also those of Mixtral and, in the zoo's sample, of DeepSeek.
        pytest.param(*one, devices, marks=[pytest.mark.slow] if devices == 3 or "moe" in one[1] else [])
        for one in OTHERS
        for devices in (2, 3)
    ],
)
def test_other_gradients(task: str, arch: str, devices: int) -> None:
    model, given = other(task, arch)
    compare_gradients(model, tpfx.compile(other(task, arch)[0], ["cpu"] * devices), given)


def test_dropout_has_the_same_masks_forward_and_backward() -> None:
    rates = {"attention_dropout": 0.1, "dropout": 0.1}
    model, given = causal("opt", num_hidden_layers=1, **rates)
    compare_gradients(model, tpfx.compile(causal("opt", num_hidden_layers=1, **rates)[0], ["cpu"] * 2), given)


# The rates of dropout that are not 0.1 by default.
DROPOUT = {"llama": {"attention_dropout": 0.1}, "opt": {"attention_dropout": 0.1, "dropout": 0.1}}
DROPOUT |= {"bloom": {"attention_dropout": 0.1, "hidden_dropout": 0.1}, "mixtral": {"attention_dropout": 0.1}}
STEPS = [(name, devices) for name in (*CAUSAL, *OTHERS[:3]) for devices in (2, 3)]


def trainee(which: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    rates = DROPOUT.get(which, {}) if isinstance(which, str) else {}
    model, given = causal(which, num_hidden_layers=1, **rates) if isinstance(which, str) else other(*which)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    return model, given


@pytest.mark.parametrize(
    ("which", "devices"),
    [pytest.param(*one, marks=[] if one == ("gpt2", 3) else [pytest.mark.slow]) for one in STEPS],
)
def test_weights_after_twenty_steps(which: Any, devices: int) -> None:
    """With dropout. Rounding errors in gradients that are zero by nature, as of the biases of keys, are no
    larger than `eps`, or AdamW would make full steps of them."""
    model, given = trainee(which)
    split = tpfx.compile(trainee(which)[0], ["cpu"] * devices)
    weights = []
    for each in (model, split):
        optimizer = torch.optim.AdamW(each.parameters(), lr=1e-3, eps=1e-5)
        for step in range(20):
            torch.manual_seed(step)
            optimizer.zero_grad()
            each(**given).loss.backward()
            torch.nn.utils.clip_grad_norm_(each.parameters(), 1.0)
            optimizer.step()
        weights.append({name: whole(value.detach()) for name, value in each.named_parameters()})
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, atol=1e-4, rtol=1e-3, msg=key)
    for weight, state in optimizer.state.items():  # of the split model: as its weights lie
        assert isinstance(state["exp_avg"], tpfx.ShardedTensor) or weight.shards is None


def test_gradients_and_collectives_of_a_training_graph() -> None:
    """Two all-reduces for each layer, forward and backward, as Megatron; the loss joins three small sums."""
    model, given = causal("llama")
    split = tpfx.compile(causal("llama")[0], ["cpu"] * 2)
    compare_gradients(model, split, given)
    report = tpfx.report(split)
    kinds = Counter((one.kind, one.phase) for one in report.collectives)
    assert set(kinds) == {("all_reduce", "forward"), ("all_reduce", "backward")}
    size = 2 * 12 * 64 * 4  # bytes of a hidden state; the sums of the loss are smaller
    large = Counter(one.phase for one in report.collectives if one.bytes == size)
    assert large == {"forward": 2 * 2 + 1, "backward": 2 * 2 + 1}
    assert report.graphs == 1 and not report.whole_ops
    assert max(report.bytes_per_device) <= 1.05 / 2 * report.total_bytes


def test_frozen_weights_accumulated_gradients_and_gradients_of_inputs() -> None:
    plain, x = Net().train(), torch.randn(4, 8)
    plain.up.weight.requires_grad_(False)
    split = tpfx.compile(copy.deepcopy(plain), ["cpu"] * 3)
    sides = []
    for each in (plain, split):
        given = x.clone().requires_grad_()
        for factor in (1.0, 2.0):
            (each(given) * factor).square().sum().backward()
        sides.append([given.grad, *(weight.grad for weight in each.parameters())])
    for left, right in zip(*sides, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            torch.testing.assert_close(whole(right), left)


def test_a_loss_of_the_callers_own() -> None:
    plain, x, target = Net().train(), torch.randn(4, 8), torch.randint(0, 8, (4,))
    split = tpfx.compile(copy.deepcopy(plain), ["cpu"] * 2)
    for each in (plain, split):
        nn.functional.cross_entropy(each(x), target).backward()
    for left, right in zip(plain.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(whole(right.grad), left.grad)


def test_checkpointed_layers() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Net(), Net(seed=1)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
            return x

    plain, x = Checkpointed().train(), torch.randn(4, 8)
    split = tpfx.compile(copy.deepcopy(plain), ["cpu"] * 2)
    for each in (plain, split):
        each(x).square().sum().backward()
    for left, right in zip(plain.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(whole(right.grad), left.grad)
