"""Which eager ops run shard by shard, which gather, and which views are made anew."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import tpfx
from tests.support.sharded import PLACEMENTS, SHAPE, agree, sharded
from tpfx.ir.shards import Shards
from tpfx.sharded_tensor.dispatch import whole_data
from tpfx.sharded_tensor.storage import ViewOf
from tpfx.sharded_tensor.tensor import ShardedTensor

# Dimension 1 of SHAPE is split: heads, of which rank 0 has two and rank 1 four.
HEADS = Shards(((1, (((0, 2),), ((2, 6),))),))
INDEX, MASK = torch.tensor([1, 0]), torch.tensor([True, False, True, True])
PER_SHARD: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "index_select": lambda x: x.index_select(0, INDEX),
    "slice of it": lambda x: x[:, 1:5],
    "a piece of it": lambda x: x.split([1, 3, 2], 1)[1],
    "select": lambda x: x[1],
    "unbind": lambda x: x.unbind(2)[1],
    "cat": lambda x: torch.cat([x, torch.ones(1, 6, 3)]),
    "stack": lambda x: torch.stack([x, x + 1], 2),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "squeeze": lambda x: x[:1].squeeze(0),
    "transpose": lambda x: x.transpose(1, 2),
    "permute": lambda x: x.permute(2, 1, 0),
    "expand": lambda x: x[:, :, :1].expand(4, 6, 5),
    "merged": lambda x: x.view(4, 18),
    "taken apart": lambda x: x.view(4, 3, 2, 3),
    "index": lambda x: x[INDEX],
    "mask": lambda x: x[MASK],
    "several indices": lambda x: x[INDEX, :, INDEX],
    "softmax": lambda x: x.softmax(2),
    "sum": lambda x: x.sum((0, 2)),
    "mean": lambda x: x.mean(2),
    "greatest": lambda x: x.amax((0, 2)),
    "gather": lambda x: x.gather(2, torch.zeros(4, 6, 1, dtype=torch.int64)),
    "embedding": lambda x: torch.nn.functional.embedding(INDEX, x[:, :, 0]),
    "linear": lambda x: torch.nn.functional.linear(torch.ones(2, 3), x[0]),
    "cumsum": lambda x: x.cumsum(0),
    "elementwise": lambda x: torch.where(x > 0, x, torch.arange(6.0).view(6, 1)),
    "to": lambda x: x.to(torch.float64),
    "index_put_": lambda x: x.index_put_([INDEX], torch.tensor(2.0)),
    "mask put": lambda x: x.index_put_([MASK], torch.zeros(6, 1)),
    "index_copy_": lambda x: x.index_copy_(0, INDEX, torch.zeros(2, 6, 3)),
    "index_add_": lambda x: x.index_add_(2, INDEX, torch.ones(4, 6, 2)),
    "index_fill_": lambda x: x.index_fill_(0, INDEX, 3.0),
    "zero_": lambda x: x.zero_(),
    "masked_fill_": lambda x: x.masked_fill_(x > 0, 1.0),
}


@pytest.mark.parametrize("op", PER_SHARD)
def test_what_the_rules_allow_runs_shard_by_shard(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.randn(SHAPE)
    x = sharded(whole, HEADS)
    expected = PER_SHARD[op](whole)
    with monkeypatch.context() as patched:
        patched.setattr(ShardedTensor, "gathered", None)
        result = PER_SHARD[op](x)
    assert isinstance(result, ShardedTensor) and result.placement
    assert (result.shape, result.stride()) == (expected.shape, expected.stride())
    agree(result)
    torch.testing.assert_close(result.full(), expected)


def test_a_split_mask_chooses_from_what_is_not_split() -> None:
    x, mask = torch.randn(4, 3), torch.tensor([True, False, True, True])
    split = sharded(mask, Shards(((0, (((0, 2),), ((2, 4),))),)))
    assert torch.equal(x[split], x[mask])
    assert torch.equal(x.clone().index_put_([split], torch.zeros(())), x * ~mask[:, None])


ANEW: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "an index of it": lambda x: x[:, 3],
    "steps through it": lambda x: x[:, ::2],
    "cut within a shard": lambda x: x.view(4, 2, 3, 3),
    "strides": lambda x: x.as_strided((2, 2), (3, 1)),
}


@pytest.mark.parametrize("op", ANEW)
def test_other_views_are_made_anew_and_written_through(op: str) -> None:
    whole = torch.randn(SHAPE)
    x = sharded(whole, HEADS)
    view = ANEW[op](x)
    assert isinstance(view, ShardedTensor) and isinstance(view.held, ViewOf)
    view.add_(1)
    ANEW[op](whole).add_(1)
    assert torch.equal(x.full(), whole)
    agree(x)


def test_what_an_op_writes_into_may_be_another_tensor_than_the_split_one() -> None:
    plain, x = torch.zeros(SHAPE), sharded(torch.ones(SHAPE), HEADS)
    assert plain.add_(x) is plain and plain.sum() == 72
    replicated = sharded(torch.zeros(SHAPE), PLACEMENTS["replicated"])
    assert replicated.add_(x) is replicated
    agree(replicated)
    assert replicated.full().sum() == 72


def test_an_error_of_the_op_is_the_ops_own() -> None:
    with pytest.raises(IndexError, match="out of range"):
        sharded(torch.ones(SHAPE), HEADS).transpose(0, 5)
    with pytest.raises(tpfx.ShardingError, match="make a new tensor instead"):
        sharded(torch.ones(SHAPE), HEADS).unsqueeze_(0)


def test_what_follows_a_shape_is_handed_on() -> None:
    x = sharded(torch.randn(SHAPE), PLACEMENTS["replicated"])
    assert x.new_full((2, 3), 7.0).tolist() == [[7.0] * 3] * 2


@pytest.mark.parametrize("placement", ["undivided", "rows", "two dims"])
def test_data_of_a_plain_tensor_is_the_whole_of_what_was_computed(placement: str) -> None:
    tensor = sharded(torch.ones(SHAPE), PLACEMENTS[placement])
    assert torch.equal(whole_data(tensor), torch.ones(SHAPE))
    tensor.qualified_name = "weight"
    for named in (tensor, tensor.detach(), tensor[1:]):
        with pytest.raises(tpfx.ShardingError, match=r"assign a copy, plain\.data = tensor\.full\(\)"):
            whole_data(named)  # type: ignore[arg-type]
