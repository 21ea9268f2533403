"""torch.distributed.checkpoint: saved split over some devices, loaded split over others."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

import tpfx
from tests.support.launches import Launched
from tests.support.models import inputs, tiny
from tests.support.sharded import PLACEMENTS, SHAPE, sharded
from tpfx.checkpoint.torch_dcp import boxes_of
from tpfx.ir.shards import Shards

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is .*:UserWarning")  # dcp in one process


@pytest.mark.parametrize("how", PLACEMENTS)
def test_boxes_cover_every_part_and_are_first_once(how: str) -> None:
    tensor = sharded(torch.arange(72.0).view(SHAPE), PLACEMENTS[how])
    seen: Counter[float] = Counter()
    boxes = boxes_of(tensor.shape, tensor.placement or Shards(), range(1 if tensor.shards is None else 2))
    for box in boxes:
        shard = tensor.full() if tensor.shards is None else tensor.shards[box.holder]
        where = tuple(slice(start, start + size) for start, size in zip(box.offsets, box.sizes, strict=True))
        assert torch.equal(box.of(shard), tensor.full()[where])
        if box.first:
            seen.update(box.of(shard).flatten().tolist())
    assert seen == Counter(tensor.full().flatten().tolist())
    held = [0, 0]
    for box in boxes:
        held[box.holder] += math.prod(box.sizes)
    assert tensor.shards is None or held == [shard.numel() for shard in tensor.shards]


@pytest.mark.parametrize("before", PLACEMENTS)
@pytest.mark.parametrize("after", ["undivided", "replicated", "packed", "overlapping", "one rank has it all"])
def test_from_any_placement_to_any_other(before: str, after: str, tmp_path: Path) -> None:
    tensor, other = (sharded(torch.randn(SHAPE), PLACEMENTS[how]) for how in (before, after))
    dcp.save({"a": tensor, "b": torch.ones(2)}, checkpoint_id=tmp_path)
    dcp.load({"a": other, "b": torch.zeros(2)}, checkpoint_id=tmp_path)
    assert torch.equal(other.full(), tensor.full())
    for rank, shard in enumerate(other.shards or ()):
        assert torch.equal(shard, sharded(tensor.full(), PLACEMENTS[after]).shards[rank])


def test_importing_tpfx_does_not_import_it() -> None:
    """It takes a third of a second, and who saves with it has imported it."""
    text = "import sys, tpfx; print('torch.distributed.checkpoint' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def model_on(devices: int, name: str = "gpt2") -> Any:
    model = tiny(name, num_hidden_layers=1)
    return tpfx.compile(model, ["cpu"] * devices, example_inputs=inputs(model))


def trained_on(devices: int, steps: int) -> tuple[Any, torch.optim.Optimizer]:
    model = model_on(devices)
    given, optimizer = inputs(model), torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(steps):
        model.eval()(**given, labels=given["input_ids"]).loss.backward()
        optimizer.step()
    return model, optimizer


@pytest.fixture(scope="module")
def two_steps() -> tuple[Any, torch.optim.Optimizer]:
    """A model on two devices, and its optimizer."""
    return trained_on(2, steps=2)


@pytest.mark.parametrize("devices", [1, 3])
def test_a_model_and_its_optimizer_on_another_number_of_devices(
    devices: int, two_steps: tuple[Any, torch.optim.Optimizer], tmp_path: Path
) -> None:
    (model, adamw), (other, other_adamw) = two_steps, trained_on(devices, steps=1)
    dcp.save({"model": model.state_dict(), "adamw": adamw.state_dict()}, checkpoint_id=tmp_path)
    dcp.load({"model": other.state_dict(), "adamw": other_adamw.state_dict()}, checkpoint_id=tmp_path)
    torch.testing.assert_close(tpfx.full_state_dict(other), tpfx.full_state_dict(model), rtol=0, atol=0)
    for left, right in zip(adamw.state.values(), other_adamw.state.values(), strict=True):
        assert torch.equal(left["exp_avg"].full(), right["exp_avg"].full())


def test_saved_by_two_processes_loaded_by_three_and_in_one(
    two_processes: Launched, three_processes: Launched
) -> None:
    two_processes.results("saved")
    expected = dict(tiny("llama", num_hidden_layers=1).state_dict())
    for found in three_processes.results("loaded"):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    whole: nn.Module = tiny("llama", num_hidden_layers=1)
    nn.init.zeros_(whole.get_parameter("lm_head.weight"))
    state = whole.state_dict()
    dcp.load(
        state, checkpoint_id=two_processes.folder / "checkpoint"
    )  # by plain torch, into an unsharded model
    torch.testing.assert_close(dict(whole.state_dict()), expected, rtol=0, atol=0)
