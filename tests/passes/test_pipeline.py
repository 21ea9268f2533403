"""Rewrites by their text, and what `verify` catches."""

from __future__ import annotations

import inspect

import pytest
import torch

import tpfx
from tpfx.dump.text import dump_text as dump
from tpfx.ir.annotations import layout_of
from tpfx.ir.layout import Partial
from tpfx.ir.resharding import all_reduce
from tpfx.passes.verify import verify
from tpfx.plan.offline import plan_offline


def ops(model: torch.nn.Module, *shapes: tuple[int, ...], devices: int = 2) -> str:
    """The middle part of the dump: one line an op, comments left out."""
    text = dump(plan_offline(model, devices, tuple(torch.zeros(shape) for shape in shapes), symbolic=False))
    middle = text.split("\n\n")[2]
    return "\n".join(" ".join(line.split("#")[0].split()) for line in middle.splitlines())


def check(text: str, expected: str) -> None:
    assert text == inspect.cleandoc(expected)


class Parallel(torch.nn.Module):
    """Two MLPs that read the same input and are added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(64, 256), torch.nn.Linear(256, 64)
        self.side, self.back = torch.nn.Linear(64, 256, bias=False), torch.nn.Linear(256, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.down(self.up(x).relu()) + self.back(self.side(x).relu())).sin()


def test_addends_share_one_all_reduce_and_biases_join_once() -> None:
    check(
        ops(Parallel(), (3, 5, 64)),
        """
        x.addend f32[3, 5, 64]+ = pend(x)
        down.bias.addend f32[64]+ = pend(down.bias)
        up.linear f32[3, 5, 256/2] = linear(x, up.weight)
        up.add f32[3, 5, 256/2] = add(up.linear, up.bias)
        relu f32[3, 5, 256/2] = relu(up.add)
        down.linear f32[3, 5, 64]+ = linear(relu, down.weight)
        down.add f32[3, 5, 64]+ = add(down.linear, down.bias.addend)
        add f32[3, 5, 64]+ = add(x.addend, down.add)
        side f32[3, 5, 256/2] = linear(x, side.weight)
        relu_1 f32[3, 5, 256/2] = relu(side)
        back f32[3, 5, 64]+ = linear(relu_1, back.weight)
        add_1 f32[3, 5, 64]+ = add(add, back)
        add_1.sum f32[3, 5, 64] = all_reduce(add_1)
        sin f32[3, 5, 64] = sin(add_1.sum)
        """,
    )


class Repeats(torch.nn.Module):
    """The same thing twice, and things that do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.cos() * 1.0 + x.cos()[:, 0:]).view(4, 8) * self.weight


def test_repetitions_and_no_ops_go() -> None:
    check(
        ops(Repeats(), (4, 8)),
        """
        x.part f32[4, 8/2] = shard(x)
        cos f32[4, 8/2] = cos(x.part)
        add f32[4, 8/2] = add(cos, cos)
        mul f32[4, 8/2] = mul(add, weight)
        """,
    )


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_rewrites_keep_the_meaning(devices: int) -> None:
    for model, shape in ((Parallel(), (3, 5, 64)), (Repeats(), (4, 8))):
        x = torch.randn(shape)
        with torch.no_grad():
            expected = model(x)
            torch.testing.assert_close(tpfx.compile(model, devices)(x), expected)


def test_a_dropped_all_reduce_is_caught() -> None:
    parallel = plan_offline(Parallel(), 2, (torch.zeros(3, 5, 64),))
    (reduce,) = parallel.graph.find_nodes(op="call_function", target=all_reduce)
    addend = reduce.args[0]
    assert isinstance(layout_of(addend), Partial)
    reduce.replace_all_uses_with(addend)
    with pytest.raises(tpfx.ShardingError, match="a collective is missing"):
        verify(parallel.graph)


def test_addends_that_leave_are_caught() -> None:
    parallel = plan_offline(Parallel(), 2, (torch.zeros(3, 5, 64),))
    (reduce,) = parallel.graph.find_nodes(op="call_function", target=all_reduce)
    parallel.graph.output_node().args = ((reduce.args[0],),)
    with pytest.raises(tpfx.ShardingError, match="leaves the graph as addends"):
        verify(parallel.graph)
