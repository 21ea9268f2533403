"""Sizes of 1 that stay open, and guards that mind the batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tpfx.frontend.effects import Effects
from tpfx.torch_internals import batch_guards, dynamo


@pytest.fixture(autouse=True)
def effects() -> Iterator[None]:
    made = Effects(*batch_guards.BATCH_EFFECTS)
    release = made.hold(made)
    yield
    release()


def capture(function: Any, inputs: list[Tensor]) -> list[Any]:
    """Call a function with each input; of each graph that this takes, whether it serves any batch."""
    found = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        fakes = [node.meta["example_value"] for node in module.graph.find_nodes(op="placeholder")]
        found.append(batch_guards.serves_any_batch(fakes))
        return module.forward

    compiled = torch.compile(function, backend=backend, fullgraph=True)
    for one in inputs:
        dynamo.mark_dynamic_sizes(one, {0}, constant={1})
        with batch_guards.open_batches():
            torch.testing.assert_close(compiled(one), function(one))
    return found


def _part_of_heads(x: Tensor) -> Tensor:
    """Four of six heads of one token, before its place, with the strides of six."""
    return x.new_ones(x.shape[0], 1, 6, 2)[:, :, :4].transpose(1, 2)


@pytest.mark.parametrize("rows", [(1, 4), (4, 1), (2, 1, 3)], ids=str)
def test_graphs_of_open_batches_serve_one_row_too(rows: tuple[int, ...]) -> None:
    def function(x: Tensor) -> Tensor:
        return (x.expand(-1, 3).transpose(0, 1) @ x.new_ones(x.shape[0], 2)).sum(0)

    assert batch_guards.CAN_OPEN_BATCHES
    torch._dynamo.reset()
    assert capture(function, [torch.randn(n, 1) for n in rows]) == [True]
    assert not torch.fx.experimental._config.backed_size_oblivious


@pytest.mark.parametrize(
    ("function", "serves"),
    [
        (lambda x: x * 2 if x.shape[0] == 1 else x * 3, [False, False]),
        (lambda x: x * 2 if x.shape[0] < 3 else x * 3, [False, False]),
        (lambda x: x * 2 if x.shape[0] < 30 else x * 3, [True]),
        (lambda x: x.squeeze(0) @ x.new_ones(1, 3), [False, False]),
        (lambda x: x.squeeze((0, 1)) + x.squeeze().dim(), [False, False]),
        (lambda x: x * x.squeeze(0).dim(), [False, False]),
        (lambda x: x.unsqueeze(2).squeeze(1) @ x.new_ones(1, 3), [True]),
        (lambda x: _part_of_heads(x).reshape(x.shape[0], 4, 1, 2), [True]),
        (lambda x: x.new_ones(x.shape[0], 3, 4).reshape(-1, 4), [True]),
        (lambda x: x.new_ones(x.shape[0], 3, 4)[:, -1:].reshape(x.shape[0], 4), [True]),
    ],
)
def test_guards_tell_which_graphs_mind_the_batch(function: Any, serves: list[bool]) -> None:
    torch._dynamo.reset()
    assert capture(function, [torch.randn(n, 1) for n in (1, 4)]) == serves


def test_batches_that_several_open_are_closed_in_the_end() -> None:
    """Whatever the order in which threads leave."""
    from torch.fx.experimental import _config

    first, second = batch_guards.open_batches(), batch_guards.open_batches()
    first.__enter__()
    second.__enter__()
    assert _config.backed_size_oblivious
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert not _config.backed_size_oblivious


def test_open_batches_leave_other_captures_alone() -> None:
    """Afterwards, torch says of unknown sizes what it said before."""
    with batch_guards.open_batches():
        pass

    def function(x: Tensor) -> Tensor:
        return x.nonzero().squeeze(0).transpose(0, 1).reshape(1, -1)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        x = torch.tensor([0.0, 1.0, 1.0])
        torch.testing.assert_close(compiled(x), function(x))


def test_constant_sizes_stay_so_though_they_vary() -> None:
    torch._dynamo.reset()
    assert capture(lambda x: x + 1, [torch.randn(2, n) for n in (1, 4, 5)]) == [True] * 3


def test_the_effects_may_be_made_twice_and_undone_once() -> None:
    tables = batch_guards.decomposition_table, torch.ops.aten.reshape.default.py_kernels
    before = [dict(table) for table in tables]
    again = Effects(*batch_guards.BATCH_EFFECTS)
    release = again.hold(again)
    assert [dict(table) for table in tables] != before
    release()
    assert [dict(table) for table in tables] == before
    assert capture(lambda x: x.squeeze(0) @ x.new_ones(1, 3), [torch.randn(4, 1)]) == [False]
