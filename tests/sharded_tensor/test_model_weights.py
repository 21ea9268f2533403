"""Saving a split model that has been trained, and loading: others see plain weights, names and ties."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tpfx
from tests.support.architectures import tiny as tiny_of
from tests.support.models import inputs, tiny
from tests.support.nets import Net
from tests.support.sharded import CPUS
from tpfx.sharded_tensor.tensor import ShardedTensor


def trained(name: str) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A model with tied embeddings and its split twin after a step of AdamW each."""
    if name == "t5":
        made, given = tiny_of("t5", "seq2seq")
    else:
        made = tiny(name, num_hidden_layers=1, tie_word_embeddings=True)
        given = inputs(made)
    made.tie_weights()
    given = {**given, "labels": given["input_ids"].clone()}
    split = tpfx.compile(copy.deepcopy(made), CPUS)
    for model in (made, split):
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
        model(**given).loss.backward()
        optimizer.step()
    return made.eval(), split.eval(), given


@pytest.mark.parametrize(
    "name", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "t5"))]
)
def test_save_pretrained_and_from_pretrained(name: str, tmp_path: Path) -> None:
    plain, split, given = trained(name)
    split.save_pretrained(tmp_path / "split")
    plain.save_pretrained(tmp_path / "plain")
    files = [load_file(tmp_path / which / "model.safetensors") for which in ("split", "plain")]
    assert set(files[0]) == set(files[1])  # tied weights once
    assert {key: (one.dtype, one.shape) for key, one in files[0].items()} == {
        key: (one.dtype, one.shape) for key, one in files[1].items()
    }
    configs = [json.loads((tmp_path / which / "config.json").read_text()) for which in ("split", "plain")]
    assert configs[0] == configs[1]
    loaded = type(plain).from_pretrained(tmp_path / "split")
    full = tpfx.full_state_dict(split)
    assert set(full) == set(loaded.state_dict()) == set(plain.state_dict())
    split.save_pretrained(tmp_path / "given", state_dict=split.state_dict())  # as Trainer does
    given_state = type(plain).from_pretrained(tmp_path / "given").state_dict()
    torch.testing.assert_close(given_state, full, rtol=0, atol=0)
    torch.testing.assert_close(loaded.state_dict(), full, rtol=0, atol=0)
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    with torch.no_grad():
        torch.testing.assert_close(loaded(**given).logits, split(**given).logits)


def test_ties_and_memory_of_the_full_state_dict() -> None:
    plain, split, _ = trained("opt")
    full = tpfx.full_state_dict(split)
    tied = [name for name in full if name.endswith(("embed_tokens.weight", "lm_head.weight"))]
    assert len({full[name].data_ptr() for name in tied}) == 1 and len(tied) == 2
    distinct = {value.data_ptr(): value.nbytes for value in full.values()}
    assert sum(distinct.values()) == sum(weight.nbytes for weight in (*plain.parameters(), *plain.buffers()))


X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))  # positive: no sum of a gradient cancels


def test_a_sharded_state_dict_is_saved_as_a_plain_one() -> None:
    split, file = tpfx.compile(Net(), CPUS, example_inputs=(X,)), io.BytesIO()
    assert isinstance(split.state_dict()["up.weight"], ShardedTensor)
    torch.save(split.state_dict(), file)
    file.seek(0)
    other = Net()
    other.load_state_dict(torch.load(file))  # weights_only: nothing of tpfx is in the file
    torch.testing.assert_close(other.state_dict(), tpfx.full_state_dict(split), rtol=0, atol=0)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", ["full", "sharded", "sharded otherwise"])
def test_what_is_loaded_lies_as_before(kind: str, assign: bool) -> None:
    split, other = tpfx.compile(Net(), CPUS, example_inputs=(X,)), Net()
    devices = {"full": None, "sharded": CPUS, "sharded otherwise": ["cpu"] * 3}[kind]
    state = tpfx.compile(copy.deepcopy(other), devices, example_inputs=(X,)).state_dict() if devices else None
    before = tpfx.report(split).bytes_per_device
    split.load_state_dict(other.state_dict() if state is None else state, assign=assign)
    torch.testing.assert_close(tpfx.full_state_dict(split), other.state_dict(), rtol=0, atol=0)
    assert tpfx.report(split).bytes_per_device == before
    torch.testing.assert_close(split(X), other(X))


def test_what_does_not_fit_is_refused_by_name() -> None:
    split = tpfx.compile(Net(), CPUS, example_inputs=(X,))
    before = tpfx.full_state_dict(split)
    state = Net().state_dict()
    state["up.weight"] = state["up.weight"][:-1]
    with pytest.raises(RuntimeError, match=r"size mismatch for up\.weight.*\[23, 8\].*\[24, 8\]"):
        split.load_state_dict(state)
    torch.testing.assert_close(split.up.weight.full(), before["up.weight"])


CHANGES: dict[str, Any] = {
    "copy_": lambda weight: weight.copy_(torch.ones_like(weight)),
    "data, in place": lambda weight: weight.data.mul_(2.0),
    "data, assigned": lambda weight: setattr(
        weight, "data", torch.full(weight.shape, 0.5, dtype=weight.dtype)
    ),
    "a row": lambda weight: weight[3].zero_(),
    "a row of data": lambda weight: weight.data[3].fill_(1.0),
    "init": lambda weight: nn.init.constant_(weight, 0.25),
    "an index": lambda weight: weight.__setitem__((slice(None), 2), 1.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_weight_changed_by_hand_is_seen_by_the_next_call(change: str) -> None:
    """In float64: where all weights are alike, sums of float32 differ by more than a kernel's rounding."""
    plain, x = Net().double(), X.double()
    split = tpfx.compile(copy.deepcopy(plain), CPUS)
    torch.testing.assert_close(split(x), plain(x))
    for model in (plain, split):
        with torch.no_grad():
            CHANGES[change](model.up.weight)
            CHANGES[change](model.down.weight)
    torch.testing.assert_close(split(x), plain(x))
    split(x).sum().backward()
    plain(x).sum().backward()
    torch.testing.assert_close(split.up.weight.grad.full(), plain.up.weight.grad)


def test_a_weight_replaced_by_a_plain_one_is_used_and_counted() -> None:
    plain = Net()
    split = tpfx.compile(copy.deepcopy(plain), CPUS)
    split(X)
    for model in (plain, split):
        model.up.weight = nn.Parameter(torch.ones(24, 8))
    torch.testing.assert_close(split(X), plain(X))
    assert tpfx.report(split).bytes_per_device[0] > tpfx.report(split).total_bytes / 2
