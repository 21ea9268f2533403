"""torch's optimizers on a split model, whose state lies as the weights do."""

from __future__ import annotations

import copy
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.nets import Net
from tests.support.sharded import CPUS, MESH
from tpfx.ir.shards import Shards
from tpfx.runtime.mesh import Mesh
from tpfx.runtime.thread_runtime import runtime_of
from tpfx.sharded_tensor import per_shard
from tpfx.sharded_tensor.optimizers import adopt
from tpfx.sharded_tensor.tensor import ShardedTensor

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))

ROWS = Shards(((0, (((0, 3),), ((3, 4),))),))
COLUMNS = Shards(((1, (((0, 3),), ((3, 6),))),))


@pytest.fixture(scope="module")
def split() -> nn.Module:
    return tpfx.compile(Net().train(), CPUS)


def test_state_follows_a_weight_that_is_laid_out_anew() -> None:
    plain = torch.nn.Parameter(torch.randn(4, 6))
    weight = ShardedTensor.unsharded(MESH, plain.detach().clone(), requires_grad=True)
    weight.distribute(ROWS, chosen=False)
    both = [torch.optim.AdamW([one], lr=0.1) for one in (plain, weight)]
    for layout in (None, COLUMNS):
        if layout is not None:
            weight.distribute(layout)
        for one, optimizer in zip((plain, weight), both, strict=True):
            one.grad = torch.full((4, 6), 0.5)
            adopt(optimizer)
            optimizer.step()
        torch.testing.assert_close(weight.full(), plain.detach())
    assert both[1].state[weight]["exp_avg"].placement == COLUMNS


def reset(split: nn.Module) -> tuple[nn.Module, nn.Module]:
    """An unsharded model and a split one with the same weights, without gradients."""
    plain = Net().train()
    split.load_state_dict(plain.state_dict())
    split.zero_grad()
    return plain, split


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 3) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()


def same_weights(plain: nn.Module, split: nn.Module) -> None:
    for (name, one), two in zip(plain.named_parameters(), split.parameters(), strict=True):
        assert isinstance(two, ShardedTensor)
        torch.testing.assert_close(two.full(), one.detach(), msg=name)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "SGD, foreach": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, foreach=True),
    "SGD, fused": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(split: nn.Module, name: str) -> None:
    plain, split = reset(split)
    for model in (plain, split):
        steps(model, OPTIMIZERS[name](model.parameters()))
    same_weights(plain, split)


@pytest.mark.parametrize("held", ["strongly", "weakly"])
def test_an_optimizer_given_before_compile_takes_over_the_sharded_weights(held: str) -> None:
    """The weights become sharded themselves; one that something refers to weakly is replaced instead."""
    plain, model = Net().train(), Net().train()
    weak = [weakref.ref(weight) for weight in model.parameters()] if held == "weakly" else []
    sides = [(each, torch.optim.AdamW(each.parameters(), lr=0.01)) for each in (plain, model)]
    for each, optimizer in sides:
        steps(each, optimizer, 2)  # so that there is state already
    model.zero_grad()
    tpfx.compile(model, CPUS)
    for each, optimizer in sides:
        steps(each, optimizer)
    same_weights(plain, model)
    optimizer = sides[1][1]
    assert all(
        one is two for one, two in zip(optimizer.param_groups[0]["params"], model.parameters(), strict=True)
    )
    assert all(isinstance(state["exp_avg"], ShardedTensor) for state in optimizer.state.values())
    assert len(optimizer.state) == len(list(model.parameters()))
    assert len(weak) in (0, len(optimizer.state))


def test_a_list_of_weights_made_before_compile_is_of_sharded_ones_afterwards() -> None:
    model = Net().train()
    weights, bias = list(model.parameters()), model.up.bias
    tpfx.compile(model, CPUS)
    model(X).square().sum().backward()
    assert all(one is two for one, two in zip(weights, model.parameters(), strict=True))
    assert bias is model.up.bias and isinstance(bias, ShardedTensor)
    assert float(torch.nn.utils.clip_grad_norm_(weights, 1.0)) > 1.0
    torch.testing.assert_close(
        torch.nn.utils.get_total_norm([weight.grad for weight in weights]), torch.tensor(1.0)
    )


def test_a_failed_compile_leaves_the_optimizer_alone() -> None:
    model = Net().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(RuntimeError, match=r"mat1|shape|size|reduction dim"):
        tpfx.compile(model, CPUS, example_inputs=(torch.ones(4, 7),))
    before = [weight.detach().clone() for weight in model.parameters()]
    steps(model, optimizer, 1)
    assert all(
        one is two for one, two in zip(optimizer.param_groups[0]["params"], model.parameters(), strict=True)
    )
    assert any(not torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))


def test_an_optimizers_state_goes_out_and_in(split: nn.Module) -> None:
    """Saved, it is that of the unsharded model; loaded, it lies as the weights do from the next step on."""
    plain, split = reset(split)
    ours, theirs = (torch.optim.AdamW(each.parameters(), lr=0.01) for each in (split, plain))
    steps(plain, theirs)
    steps(split, ours)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    saved = torch.load(file)
    torch.testing.assert_close(saved["state"], theirs.state_dict()["state"])
    resumed = torch.optim.AdamW(split.parameters(), lr=0.01)
    resumed.load_state_dict(saved)
    steps(split, resumed)
    steps(plain, theirs)
    same_weights(plain, split)
    assert all(isinstance(state["exp_avg_sq"], ShardedTensor) for state in resumed.state.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_grad_scaler(dtype: torch.dtype) -> None:
    """Half precision rounds sums in another order, so losses agree to its precision."""
    plain, model = Net().train(), tpfx.compile(Net().train(), CPUS)
    losses, scales = [], []
    for each in (plain, model):
        optimizer, scaler = (
            torch.optim.SGD(each.parameters(), lr=0.01),
            torch.amp.GradScaler("cpu", init_scale=64.0),
        )
        for _ in range(4):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                loss = each(X).square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(each.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        losses.append(float(loss.detach()))
        scales.append(scaler.get_scale())
    assert losses[0] == pytest.approx(losses[1], rel=0.01) and scales == [64.0, 64.0]
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_an_infinity_on_one_rank_skips_the_step(split: nn.Module) -> None:
    _, split = reset(split)
    before = [weight.detach().full() for weight in split.parameters()]
    optimizer, scaler = (
        torch.optim.SGD(split.parameters(), lr=0.01),
        torch.amp.GradScaler("cpu", init_scale=64.0),
    )
    scaler.scale(split(X).square().mean()).backward()
    assert split.up.weight.grad.placement
    split.up.weight.grad.shards[1][0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 32.0
    assert all(torch.equal(one, two.full()) for one, two in zip(before, split.parameters(), strict=True))


def test_large_parts_are_worked_on_in_the_ranks_threads(
    split: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Mesh] = []
    monkeypatch.setattr(per_shard, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(per_shard, "runtime_of", lambda mesh: used.append(mesh) or runtime_of(mesh))
    for name in ("AdamW, fused", "Adam"):
        used.clear()
        test_optimizers(split, name)
        assert used, "the ranks' threads do the work"


def test_what_each_device_holds_while_training() -> None:
    """Weights, gradients and AdamW's state: half of the unsharded sum on each of two devices."""
    from tests.support.models import inputs, tiny

    model = tpfx.compile(tiny("llama").train(), CPUS)
    given = inputs(model)
    optimizer = torch.optim.AdamW(model.parameters())
    model(**given, labels=given["input_ids"]).loss.backward()
    optimizer.step()
    whole, held = 0, [0, 0]
    for weight in model.parameters():
        state = optimizer.state[weight]
        for tensor in (weight, weight.grad, state["exp_avg"], state["exp_avg_sq"]):
            assert isinstance(tensor, ShardedTensor)
            whole += tensor.numel() * tensor.element_size()
            held = [one + size for one, size in zip(held, tensor.resident_bytes, strict=True)]
    assert max(held) <= 1.05 / 2 * whole


def test_unseen_parts_cover_each_index_once() -> None:
    owned = ((((0, 4), (6, 8))), ((2, 7),), (), ((0, 9),))
    from tpfx.ir.shards import unseen

    assert [unseen(owned, rank) for rank in range(4)] == [((0, 6),), ((2, 4),), (), ((8, 9),)]


def test_a_copy_of_a_training_model_trains_on_its_own(split: nn.Module) -> None:
    plain, split = reset(split)
    twin = copy.deepcopy(split)
    steps(twin, torch.optim.SGD(twin.parameters(), lr=0.01))
    same_weights(plain, split)
    steps(plain, torch.optim.SGD(plain.parameters(), lr=0.01))
    same_weights(plain, twin)
