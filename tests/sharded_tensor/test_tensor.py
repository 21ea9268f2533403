"""Any eager op on a sharded tensor gives what it gives on the whole one, however the tensor is held."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import nn
from torch.utils._pytree import tree_map_only

import tpfx
from tests.support.sharded import PLACEMENTS, SHAPE, agree, sharded
from tpfx.ir.shards import Shards
from tpfx.sharded_tensor import per_shard
from tpfx.sharded_tensor.tensor import ShardedTensor


@pytest.fixture(params=list(PLACEMENTS))
def held(request: pytest.FixtureRequest) -> ShardedTensor:
    return sharded(torch.randn(SHAPE), PLACEMENTS[request.param])


@pytest.fixture
def never_gather(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, gathering is an error; the returned function ends it."""
    gathered = ShardedTensor.gathered

    def refuse(self: ShardedTensor, device: object = None) -> torch.Tensor:
        raise AssertionError(f"{self!r} is gathered")

    monkeypatch.setattr(ShardedTensor, "gathered", refuse)
    return lambda: monkeypatch.setattr(ShardedTensor, "gathered", gathered)


OPS: dict[str, Callable[[torch.Tensor], object]] = {
    "add a number": lambda x: x + 1,
    "number minus": lambda x: 2 - x,
    "add itself": lambda x: x + x,
    "add a clone": lambda x: x * x.clone(),
    "add a row": lambda x: x + torch.arange(3.0),
    "add a column": lambda x: torch.arange(4.0).view(4, 1, 1) - x,
    "add a larger one": lambda x: x + torch.arange(48.0).view(2, 4, 6, 1),
    "add a 0-dim one": lambda x: x + torch.tensor(3.0),
    "times a part of itself": lambda x: x * x[:1],
    "times another layout": lambda x: x * sharded(torch.full(SHAPE, 2.0), PLACEMENTS["rows"]),
    "compare": lambda x: x > 0,
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "gelu": torch.nn.functional.gelu,
    "to half": lambda x: x.half(),
    "to device and dtype": lambda x: x.to("cpu", torch.float64),
    "clone": lambda x: x.clone(),
    "detach": lambda x: x.detach(),
    "contiguous": lambda x: x.transpose(0, 1).contiguous(),
    "zeros_like": torch.zeros_like,
    "full_like": lambda x: torch.full_like(x, 2, dtype=torch.int64),
    "new_ones": lambda x: x.new_ones(2),
    "index_select 0": lambda x: x.index_select(0, torch.tensor([1, 1, 0])),
    "index_select 1": lambda x: x.index_select(-2, torch.tensor([5])),
    "index": lambda x: x[torch.tensor([[1, 0]]), ...],
    "index by mask": lambda x: x[torch.tensor([True, False, True, True])],
    "index by two": lambda x: x[torch.tensor([1, 0]), :, torch.tensor([2, 2])],
    "slice 0": lambda x: x[1:],
    "slice 1": lambda x: x[:, 1:5],
    "slice 1, stepping": lambda x: x[:, ::2],
    "slice 2": lambda x: x[..., :-1],
    "empty slice": lambda x: x[:, 3:3],
    "select 0": lambda x: x[1],
    "select 1": lambda x: x[:, -1],
    "int and slices": lambda x: x[1, 2:, None, 1],
    "repeat_interleave 0": lambda x: x.repeat_interleave(2, dim=0),
    "repeat_interleave 1": lambda x: x.repeat_interleave(2, dim=1),
    "cat 0": lambda x: torch.cat([x, x], 0),
    "cat 2 with a plain one": lambda x: torch.cat([torch.ones(4, 6, 1), x], -1),
    "stack": lambda x: torch.stack([x, x + 1], 1),
    "split": lambda x: x.split(2, 1),
    "chunk": lambda x: x.chunk(2, 0),
    "unbind": lambda x: x.unbind(2),
    "transpose": lambda x: x.transpose(0, 2),
    "permute": lambda x: x.permute(2, 0, 1),
    "t": lambda x: x[0].t(),
    "unsqueeze and expand": lambda x: x.unsqueeze(1).expand(-1, 5, -1, -1),
    "squeeze": lambda x: x[:1].squeeze(0),
    "flatten": lambda x: x.flatten(),
    "view, first two": lambda x: x.view(24, 3),
    "view, last two": lambda x: x.view(4, -1),
    "view, one in two": lambda x: x.view(4, 2, 3, 3),
    "reshape a transposed one": lambda x: x.transpose(1, 2).reshape(4, 18),
    "sum": lambda x: x.sum(),
    "softmax": lambda x: x.softmax(1),
    "sort": lambda x: x.sort(0),
    "matmul": lambda x: x @ torch.ones(3, 2),
    "linear": lambda x: torch.nn.functional.linear(torch.ones(2, 3), x[0]),
    "equal": lambda x: torch.equal(x, x.clone()),
    "allclose": lambda x: torch.allclose(x, x + 1),
    "all": lambda x: bool((x == x).all()),
    "item": lambda x: x[0, 0, 0].item(),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: torch.from_numpy(x.numpy()),
    "is_contiguous": lambda x: (x.is_contiguous(), x.mT.is_contiguous()),
    "stride": lambda x: x.transpose(0, 1)[1:].stride(),
    "rand_like": lambda x: torch.rand_like(torch.manual_seed(3) and x),
    "copy into a plain one": lambda x: torch.zeros(SHAPE).copy_(x),
    "add_ to a plain one": lambda x: torch.ones(SHAPE).add_(x),
    "out": lambda x: torch.add(x, 1, out=torch.empty(SHAPE)),
}
# A kernel of matrix products adds in another order for another shape of its operands.
PRODUCTS = ("matmul", "linear")


def plain(value: object) -> object:
    if isinstance(value, ShardedTensor):
        agree(value)
        return value.full()
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def shapes_of(value: object) -> object:
    """What tensors say of themselves."""
    return tree_map_only(
        torch.Tensor, lambda tensor: (tensor.shape, tensor.dtype, tensor.is_contiguous()), value
    )


@pytest.mark.parametrize("op", OPS)
def test_ops_give_what_they_give_on_the_whole(held: ShardedTensor, op: str) -> None:
    whole = held.full()
    result, expected = OPS[op](held), OPS[op](whole)
    error = {} if op in PRODUCTS else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(plain(result), plain(expected), **error)
    assert shapes_of(result) == shapes_of(expected)
    torch.testing.assert_close(held.full(), whole, rtol=0, atol=0)


def put(*index: object) -> Callable[[torch.Tensor], object]:
    def change(x: torch.Tensor) -> None:
        x[index] = torch.full_like(x[index], 7) if isinstance(x[index], torch.Tensor) else 7

    return change


CHANGES: dict[str, Callable[[torch.Tensor], object]] = {
    "add_": lambda x: x.add_(1),
    "iadd": lambda x: x.__iadd__(torch.arange(3.0)),
    "mul_ by itself": lambda x: x.mul_(x),
    "zero_": lambda x: x.zero_(),
    "fill_": lambda x: x.fill_(torch.tensor(2.0)),
    "clamp_": lambda x: x.clamp_(min=0),
    "addcmul_": lambda x: x.addcmul_(torch.ones(SHAPE), torch.full((3,), 2.0), value=0.5),
    "copy_ a plain one": lambda x: x.copy_(torch.arange(72.0).view(SHAPE)),
    "copy_ a row of another dtype": lambda x: x.copy_(torch.arange(3)),
    "copy_ another layout": lambda x: x.copy_(sharded(torch.arange(72.0).view(SHAPE), PLACEMENTS["packed"])),
    "copy_ the same layout": lambda x: x.copy_(x + 1),
    "a lower dim": lambda x: x[1:3].add_(1),
    "a slice of dim 1": lambda x: x[:, 2:5].zero_(),
    "one row": put(1),
    "one column": lambda x: x[:, 4].fill_(3),
    "steps": put(slice(None), slice(0, 6, 2)),
    "an index": put(slice(None), torch.tensor([1, 4])),
    "a mask": lambda x: x.masked_fill_(torch.tensor([True, False, True]), 9),
    "a boolean index": lambda x: x.__setitem__(x > 0, 0.0),
    "index_copy_ 0": lambda x: x.index_copy_(0, torch.tensor([2]), torch.zeros(1, 6, 3)),
    "index_copy_ 1": lambda x: x.index_copy_(1, torch.tensor([0]), torch.zeros(4, 1, 3)),
    "index_add_ 2": lambda x: x.index_add_(2, torch.tensor([0, 0]), torch.ones(4, 6, 2)),
    "through views": lambda x: x.view(-1)[5:40].view(5, 7).t()[2].mul_(-1),
    "through a transpose": lambda x: x.permute(2, 1, 0)[1, 1:].zero_(),
    "through data": lambda x: x.data.add_(2),
    "through chunk": lambda x: [part.mul_(index) for index, part in enumerate(x.chunk(3, 1))],
    "normal_": lambda x: torch.nn.init.normal_(x, generator=torch.Generator().manual_seed(5)),
    "trunc_normal_": lambda x: torch.nn.init.trunc_normal_(x, generator=torch.Generator().manual_seed(5)),
    "xavier_uniform_": lambda x: torch.nn.init.xavier_uniform_(x, generator=torch.Generator().manual_seed(5)),
    "out": lambda x: torch.add(torch.ones(SHAPE), 1, out=x),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_in_place_reach_every_copy_and_every_alias(held: ShardedTensor, change: str) -> None:
    whole, alias, result_of = held.full(), held.detach(), CHANGES[change]
    expected = result_of(whole)
    result = result_of(held)
    assert (result is held) == (expected is whole)
    torch.testing.assert_close(held.full(), whole, rtol=0, atol=0)
    torch.testing.assert_close(alias.full(), whole, rtol=0, atol=0)
    agree(held)


def test_an_alias_of_an_undivided_tensor_is_divided_with_it() -> None:
    tensor = sharded(torch.randn(SHAPE), None)
    alias, view = tensor.detach(), tensor[1]
    tensor.distribute(PLACEMENTS["packed"])  # type: ignore[arg-type]
    tensor.zero_()
    # type: ignore[index, attr-defined]
    assert alias.shards is not None and alias.shards[0] is tensor.shards[0]
    assert alias.full().abs().sum() == view.abs().sum() == 0  # type: ignore[attr-defined]


def test_full_has_memory_of_its_own(held: ShardedTensor) -> None:
    before = held.full()
    held.full().zero_()
    assert torch.equal(held.full(), before)


# Keys and values of a cache [batch, heads, length, width], split by heads.
HEADS = Shards(((1, (((0, 2),), ((2, 6),))),))
CACHE_OPS: dict[str, Callable[[transformers.DynamicCache], object]] = {
    "beams": lambda cache: cache.reorder_cache(torch.tensor([1, 1, 0])),
    "crop": lambda cache: cache.crop(-2),
    "repeat": lambda cache: cache.batch_repeat_interleave(2),
    "indices": lambda cache: cache.batch_select_indices(torch.tensor([2, 0])),
    "update": lambda cache: cache.update(torch.ones(3, 6, 1, 8), torch.ones(3, 6, 1, 8), 0),
}


@pytest.mark.parametrize("op", CACHE_OPS)
@pytest.mark.parametrize("kind", ["dynamic", "sliding"])
def test_a_cache_is_never_gathered(op: str, kind: str, never_gather: Callable[[], None]) -> None:
    keys = torch.randn(3, 6, 5, 8)
    config = transformers.MistralConfig(num_hidden_layers=1, sliding_window=9 if kind == "sliding" else None)
    caches = [transformers.DynamicCache(config=config) for _ in range(2)]
    caches[0].update(keys, -keys, 0)
    caches[1].update(keys, -keys, 0)
    caches[1].layers[0].keys = sharded(keys, HEADS)
    caches[1].layers[0].values = sharded(-keys, HEADS)
    for cache in caches:
        CACHE_OPS[op](cache)
    never_gather()
    for name in ("keys", "values"):
        expected, held = (getattr(cache.layers[0], name) for cache in caches)
        assert isinstance(held, ShardedTensor) and held.placement == HEADS
        torch.testing.assert_close(held.full(), expected, rtol=0, atol=0)


def test_a_static_cache_is_written_in_place(never_gather: Callable[[], None]) -> None:
    keys = sharded(torch.zeros(2, 6, 4, 8), HEADS)
    keys.index_copy_(2, torch.tensor([1]), sharded(torch.ones(2, 6, 1, 8), HEADS))
    keys[:, :, torch.tensor([3])] = torch.full((2, 6, 1, 8), 3.0)
    never_gather()
    assert [float(keys.full()[0, 5, at, 0]) for at in range(4)] == [0, 1, 0, 3]


def test_what_is_gathered_is_logged_once_per_op(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(per_shard, "_reported", set())  # an earlier test may have gathered for it
    tensor = sharded(torch.randn(SHAPE), PLACEMENTS["rows"])
    with caplog.at_level(logging.DEBUG, "tpfx"):
        for _ in range(3):
            tensor.logsumexp(0)
            tensor + 1
    (message,) = [record.getMessage() for record in caplog.records]
    assert "aten.logsumexp" in message and "ShardedTensor([4, 6, 3]" in message


def test_repr_never_communicates(held: ShardedTensor, never_gather: Callable[[], None]) -> None:
    assert repr(held).startswith("ShardedTensor([4, 6, 3], torch.float32, ")
    assert repr(held[1, ::2, 1].detach()).startswith("ShardedTensor([3], torch.float32, ")
    never_gather()


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        ("undivided", "not divided yet"),
        ("replicated", "replicated"),
        ("packed", "split dim 1 as [2, 4]"),
        ("two dims", "split dim 0 as [2, 2], dim 2 as [3, 3]"),
    ],
)
def test_repr_says_how_it_is_held(placement: str, words: str) -> None:
    tensor = sharded(torch.zeros(SHAPE), PLACEMENTS[placement])
    assert repr(tensor) == f"ShardedTensor([4, 6, 3], torch.float32, {words})"


def test_deepcopy_keeps_what_a_parameter_is(held: ShardedTensor) -> None:
    held.qualified_name = "a.weight"
    held.requires_grad_()
    held._is_param = True
    held.grad = torch.ones_like(held.detach())
    twice = copy.deepcopy([held, held])
    made = twice[0]
    assert twice[1] is made and made is not held
    assert isinstance(made, torch.nn.Parameter) and made.requires_grad
    assert (made.qualified_name, made.placement) == ("a.weight", held.placement)
    assert made.grad is not None and made.grad is not held.grad
    with torch.no_grad():
        made.zero_()
    assert torch.count_nonzero(held.detach()) == held.numel()


def test_deepcopy_of_a_view_stands_alone() -> None:
    base = sharded(torch.zeros(SHAPE), PLACEMENTS["packed"])
    made = copy.deepcopy(base[:, 1])
    base.fill_(1)
    assert made.full().sum() == 0


def test_pickled_it_is_the_whole_as_a_plain_tensor(held: ShardedTensor) -> None:
    assert torch.equal(pickle.loads(pickle.dumps(held)), held.full())
    file = io.BytesIO()
    torch.save({"a": nn.Parameter(held)}, file)
    file.seek(0)
    loaded = torch.load(file)["a"]
    assert type(loaded) is nn.Parameter and torch.equal(loaded, held.full())


@pytest.mark.parametrize("change", ["t_", "squeeze_", "resize_", "set_"])
def test_changing_the_shape_in_place_is_refused(held: ShardedTensor, change: str) -> None:
    arguments = {"resize_": (3,), "set_": (torch.ones(3),)}.get(change, ())
    tensor = held[0].detach() if change == "t_" else held
    with pytest.raises(tpfx.ShardingError, match="make a new tensor instead"):
        getattr(tensor, change)(*arguments)


def test_data_takes_values_and_dtype_and_another_shape(held: ShardedTensor) -> None:
    held.data = torch.full(SHAPE, 3.0)
    assert bool((held == 3).all())
    held.data = torch.full(SHAPE, 4, dtype=torch.float64)
    assert held.dtype == torch.float64 == held.full().dtype and bool((held == 4).all())
    held.data = torch.arange(2.0)
    assert held.shape == (2,) and held.full().tolist() == [0, 1] and held.placement is None


def test_an_optimizer_step_is_that_of_the_whole(held: ShardedTensor) -> None:
    whole = torch.nn.Parameter(held.full())
    parameter = torch.nn.Parameter(held)
    assert isinstance(parameter, ShardedTensor)
    whole.grad = torch.randn(SHAPE)
    parameter.grad = sharded(whole.grad, held.placement)
    for tensor in (whole, parameter):
        optimizer = torch.optim.AdamW([tensor], lr=0.1)
        torch.nn.utils.clip_grad_norm_([tensor], 0.5)
        optimizer.step()
        optimizer.step()
    torch.testing.assert_close(parameter.full(), whole.detach())
    agree(parameter)


def test_autograd_runs_through_eager_ops(held: ShardedTensor) -> None:
    held.requires_grad_()
    (held[:, 2] * 3).sum().backward()
    assert held.grad is not None
    assert torch.equal(held.grad.sum(), torch.tensor(36.0))
