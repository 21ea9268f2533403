"""Weights that no graph has reached: divided evenly, the same to look at, laid out anew once."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.support.sharded import MESH, PLACEMENTS, SHAPE, agree, sharded
from tpfx.ir.shards import Shards, even_layout
from tpfx.runtime.mesh import Mesh
from tpfx.sharded_tensor.even_storage import store_evenly
from tpfx.sharded_tensor.tensor import ShardedTensor

ROWS = PLACEMENTS["rows"]
assert ROWS is not None


def stored(whole: torch.Tensor) -> ShardedTensor:
    tensor = ShardedTensor.unsharded(MESH, whole.clone())
    store_evenly([tensor], MESH)
    return tensor


@pytest.mark.parametrize(
    ("shape", "loads", "expected"),
    [
        ((3, 8), [0.0, 0.0], Shards(((1, (((0, 4),), ((4, 8),))),))),
        ((5,), [1.0, 0.0], Shards(((0, (((0, 2),), ((2, 5),))),))),
        ((2, 1), [0.0, 1.0, 2.0], Shards(((0, (((0, 1),), ((1, 2),), ())),))),
        ((), [0.0, 0.0], Shards()),
        ((1, 1), [0.0, 0.0], Shards()),
        ((4, 0), [0.0, 0.0], Shards()),
    ],
)
def test_the_layout(shape: tuple[int, ...], loads: list[float], expected: Shards) -> None:
    assert even_layout(shape, loads) == expected


def test_what_is_left_over_goes_where_least_is() -> None:
    mesh = Mesh((torch.device("cpu"),) * 3)
    weights = [ShardedTensor.unsharded(mesh, torch.randn(4, 1)) for _ in range(3)]
    store_evenly([*weights, weights[0], torch.randn(9), None], mesh)
    held = torch.tensor([weight.resident_bytes for weight in weights]).sum(0)
    assert held.tolist() == [16, 16, 16]


def test_what_is_placed_stays() -> None:
    tensor = sharded(torch.randn(SHAPE), ROWS)
    parts = tensor.shards
    store_evenly([tensor], MESH)
    assert tensor.shards is parts and tensor.pinned == ROWS


def test_aliases_see_what_is_written_and_how_it_lies() -> None:
    tensor = stored(torch.zeros(SHAPE))
    early = tensor.detach()
    assert early.pinned is None and early.placement == tensor.placement  # type: ignore[attr-defined]
    tensor.detach().add_(1)
    assert early.full().sum() == 72  # type: ignore[attr-defined]
    tensor.distribute(ROWS)
    tensor.detach().add_(1)
    assert early.pinned == ROWS and early.full().sum() == 144  # type: ignore[attr-defined]


def test_a_graph_may_choose_what_it_lies_in_already() -> None:
    tensor = stored(torch.randn(SHAPE))
    parts, layout = tensor.shards, tensor.placement
    assert layout is not None
    tensor.distribute(layout)
    assert tensor.shards is parts and tensor.pinned == layout
    with pytest.raises(AssertionError, match="has a placement already"):
        tensor.distribute(ROWS)


@pytest.mark.parametrize("how", ["copied", "cast", "data"])
def test_what_is_made_of_one_may_be_laid_out_too(how: str) -> None:
    whole = torch.randn(SHAPE)
    tensor = stored(whole)
    match how:
        case "copied":
            made = copy.deepcopy(tensor)
        case "cast":
            made = tensor.to(torch.float64)
        case _:
            made = tensor
            made.data = tensor.detach().to(torch.float64)
    assert made.pinned is None
    made.distribute(ROWS)
    assert made.pinned == ROWS
    torch.testing.assert_close(made.full(), whole.to(made.dtype), rtol=0, atol=0)
    assert (tensor.pinned is None) == (how != "data")
    agree(made)


def test_eager_ops_are_right() -> None:
    whole, x = torch.randn(6, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    tensor = stored(whole).requires_grad_()
    plain = whole.clone().requires_grad_()
    for weight in (tensor, plain):
        torch.nn.functional.linear(x, weight).square().sum().backward()
    torch.testing.assert_close(
        torch.as_tensor(tensor.grad.full() if isinstance(tensor.grad, ShardedTensor) else tensor.grad),
        plain.grad,
    )
