"""How a sharded tensor is held: in shards, unsharded, as a view made anew, or fake; and unread contents."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tpfx
from tests.support.sharded import MESH, PLACEMENTS, SHAPE, sharded
from tpfx.checkpoint.safetensors_files import Stored
from tpfx.ir.shards import Shards
from tpfx.sharded_tensor.storage import Cell, Fake, Sharded, Unread, Unsharded, ViewOf
from tpfx.sharded_tensor.tensor import ShardedTensor

ROWS = PLACEMENTS["rows"]
assert ROWS is not None


def test_aliases_share_a_cell_and_what_it_becomes() -> None:
    tensor = sharded(torch.randn(SHAPE), None)
    alias = tensor.detach()
    assert isinstance(tensor.held, Unsharded) and alias.held.cell is tensor.held.cell  # type: ignore[attr-defined]
    assert (alias.placement, alias.shards) == (None, None)
    tensor.distribute(ROWS)
    assert isinstance(tensor.held, Sharded) and alias.held is tensor.held  # type: ignore[attr-defined]
    assert alias.placement is ROWS  # type: ignore[attr-defined]


def test_what_is_sharded_cannot_be_sharded_again() -> None:
    tensor = sharded(torch.randn(SHAPE), ROWS)
    with pytest.raises(AssertionError, match="has a placement already"):
        tensor.distribute(ROWS)


def test_a_view_that_needs_the_whole_is_made_anew() -> None:
    base = sharded(torch.arange(72.0).view(SHAPE), ROWS)
    view = base[::2]
    assert isinstance(view.held, ViewOf) and view.held.base is base
    assert (view.placement, view.shards, view.resident_bytes) == (Shards(), None, (0, 0))
    base.zero_()
    assert view.full().abs().sum() == 0
    assert repr(view).endswith("a view of [4, 6, 3], split dim 0 as [3, 1])")


@pytest.mark.parametrize("how", ["undivided", "replicated", "rows"])
def test_the_whole_of_a_view_has_memory_of_its_own(how: str) -> None:
    base = sharded(torch.ones(SHAPE), PLACEMENTS[how])
    base[::2].full().zero_()
    assert base.full().sum() == 72


def test_a_view_has_no_memory_that_a_checkpoint_could_fill() -> None:
    view = sharded(torch.ones(SHAPE), ROWS)[::2]
    (box,) = view.__create_chunk_list__()
    with pytest.raises(tpfx.ShardingError, match="save and load its base instead"):
        view.__get_tensor_shard__(_Index(tuple(box.offsets)))


class _Index:
    """Which box torch.distributed.checkpoint asks for."""

    def __init__(self, offset: Sequence[int]) -> None:
        self.offset, self.index = offset, None


def test_a_fake_one_has_nothing() -> None:
    like = torch.empty(3, 2, device="meta")
    fake = ShardedTensor.holding(Fake(), None, like)
    assert (fake.shards, fake.placement) == (None, None)
    assert "fake" in repr(fake) and fake.gathered().shape == (3, 2)
    assert isinstance(fake.alias().held, Fake)
    with pytest.raises(AttributeError, match="mesh"):
        fake.mesh  # noqa: B018


def stored(whole: torch.Tensor, folder: Path) -> Stored:
    save_file({"a": whole}, folder / "a.safetensors")
    return Stored(folder / "a.safetensors", "a", tuple(whole.shape), lambda size: None)


def test_unread_contents_are_not_copied_when_they_are_sharded(tmp_path: Path) -> None:
    whole = torch.randn(SHAPE)
    original = torch.empty(SHAPE, device="meta")
    tensor = ShardedTensor.unsharded(MESH, original, stored=stored(whole, tmp_path))
    alias = tensor.detach()
    alias.distribute(ROWS)  # type: ignore[attr-defined]
    held = tensor.held
    assert isinstance(held, Sharded) and isinstance(held.unread, Unread) and held.unread.original is original
    assert [shard.shape for shard in held.shards] == [(3, 6, 3), (1, 6, 3)]
    assert all(shard.device.type == "cpu" for shard in held.shards)
    copied = copy.deepcopy(tensor)
    assert isinstance(copied.held, Sharded) and copied.held.unread is held.unread


def test_a_cell_that_is_filled_is_read() -> None:
    cell = Cell(torch.empty(2, device="meta"), stored=object())  # type: ignore[arg-type]
    whole = torch.ones(2)
    cell.fill(whole)
    assert Unsharded(cell).whole is whole and cell.stored is None
