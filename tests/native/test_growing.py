"""What grows step by step has the values of `cat`, in one memory, and nobody can tell whose memory it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from tpfx.native.build import load
from tpfx.native.growing import let_grow
from tpfx.native.rank_program import RankProgram

aten = torch.ops.aten


def graph_of(write: Callable[..., Any]) -> Graph:
    graph = Graph()
    inputs = [graph.placeholder(name) for name in ("past", "new")]

    def call(op: Any, *args: Any) -> Node:
        return graph.call_function(op, args)

    graph.output(tuple(write(call, *inputs)))
    return graph


def rewritten(write: Callable[..., Any]) -> list[str]:
    """What becomes of a graph of `past, new`, of whose results the first may grow."""
    graph = graph_of(write)
    let_grow(graph, {0})
    graph.lint()
    names = ((node, getattr(node.target, "__name__", node.target), node.args) for node in graph.nodes)
    return [f"{node} {target} {args}" for node, target, args in names if node.op == "call_function"]


def test_a_past_that_is_returned_with_more_behind_it_grows() -> None:
    def write(call: Any, past: Node, new: Node) -> list[Node]:
        keys = call(aten.cat.default, [past, new], -2)
        return [keys, call(aten.sum.default, keys)]

    assert rewritten(write) == ["cat_default grown (past, new, -2)", "sum_default sum.default (cat_default,)"]


def test_a_window_of_it_grows_too() -> None:
    def write(call: Any, past: Node, new: Node) -> list[Node]:
        return [call(aten.slice.Tensor, call(aten.cat.default, [past, new]), 0, -3, 2**63 - 1)]

    assert rewritten(write)[0] == "cat_default grown (past, new, 0)"


def test_not_what_is_used_here_alone_or_whose_strides_are_seen_or_was_made_here() -> None:
    def inside(call: Any, past: Node, new: Node) -> list[Node]:
        return [call(aten.sum.default, call(aten.cat.default, [past, new], 1))]

    def seen(call: Any, past: Node, new: Node) -> list[Any]:
        return [None, call(aten.cat.default, [past, new], 1)]

    def made(call: Any, past: Node, new: Node) -> list[Node]:
        return [call(aten.cat.default, [call(aten.neg.default, past), new], 1)]

    def of_three(call: Any, past: Node, new: Node) -> list[Node]:
        return [call(aten.cat.default, [past, new, new], 1)]

    for write in (inside, seen, made, of_three):
        assert not any("grown" in line for line in rewritten(write)), write.__name__


def step_along(dim: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The program of a graph that returns `cat([past, new], dim)`."""
    graph = graph_of(lambda call, past, new: [call(aten.cat.default, [past, new], dim)])
    program = RankProgram(GraphModule({}, graph), growing={0})
    return lambda past, new: program(past, new)[0]


def numbers(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dim", [0, 1, -2, 3])
def test_many_steps_are_one_cat_and_few_memories(dim: int) -> None:
    step, before = step_along(dim), load().rooms()
    parts = [numbers(2, 3, 4, 5)] + [
        numbers(2, 3, 4, 5).narrow(dim, at % 2, 1 + at % 2 if dim else 1) for at in range(60)
    ]
    kept = [parts[0]]
    for part in parts[1:]:
        kept.append(step(kept[-1], part))
    for at, one in enumerate(kept):
        torch.testing.assert_close(one, torch.cat(parts[: at + 1], dim), rtol=0, atol=0)
    assert 2 <= load().rooms() - before <= 5
    del kept, one
    assert load().rooms() == before


def grown_often(step: Callable[[Tensor, Tensor], Tensor], times: int) -> tuple[Tensor, Tensor]:
    """What grew row by row, and what it should be: `[2, 3 + times, 4]`."""
    value, parts = numbers(2, 3, 4), [numbers(2, 3, 4)]
    for _ in range(times):
        parts.append(numbers(2, 1, 4))
        value = step(value, parts[-1])
    return value, torch.cat(parts, 1)


def test_two_continuations_of_one_past() -> None:
    step = step_along(1)
    past, expected = grown_often(step, 4)
    for more in (numbers(2, 1, 4), numbers(2, 2, 4), numbers(2, 1, 4) + 1):
        one = step(past, more)
        two = step(step(past, more * 2), more)
        assert torch.equal(one, torch.cat([expected, more], 1))
        assert torch.equal(two, torch.cat([expected, more * 2, more], 1))
    assert torch.equal(past, expected)


def test_who_writes_into_one_changes_no_other() -> None:
    step = step_along(1)
    past, expected = grown_often(step, 4)
    longer = step(past, numbers(2, 1, 4))
    view = longer[:, 1:]
    past[:, 0] = 7
    past.numpy()[:, 1] = 8
    assert torch.equal(longer, torch.cat([expected, numbers(2, 1, 4)], 1))
    view.zero_()
    assert torch.equal(past[:, 2:], expected[:, 2:])
    further = step(past, longer[:, :1])  # what has been written to goes on as well
    assert torch.equal(further, torch.cat([past, expected[:, :1]], 1))
    further = step(longer, longer[:, -1:])
    assert torch.equal(further[:, 1:], torch.zeros(2, 8, 4)) and torch.equal(further[:, :1], expected[:, :1])


def cuts(value: Tensor) -> list[Tensor]:
    return [
        value[:, :-1],
        value[:, 2:],
        value[:1],
        value[1:],
        value[:, :, :2],
        value.transpose(0, 2),
        value[:, -1:].expand(2, 5, 4),
        value[:, ::2],
        value.reshape(1, -1, 4),
        value.view(torch.int32),
        copy.deepcopy(value),
    ]


@pytest.mark.parametrize("cut", range(11))
def test_what_is_cut_from_it_goes_on(cut: int) -> None:
    step = step_along(1)
    value, expected = grown_often(step, 4)
    one, wanted = cuts(value)[cut], cuts(expected)[cut]
    for _ in range(3):
        more = wanted[:, -1:] * 2
        one, wanted = step(one, more), torch.cat([wanted, more], 1)
        assert torch.equal(one, wanted)
    assert torch.equal(value, expected)


def test_a_window_slides_in_few_memories() -> None:
    def write(call: Any, past: Node, new: Node) -> list[Node]:
        whole = call(aten.cat.default, [past, new], 1)
        return [call(aten.slice.Tensor, whole, 1, -3, 2**63 - 1), whole]

    program, before = RankProgram(GraphModule({}, graph_of(write)), growing={0, 1}), load().rooms()
    window, expected, kept = numbers(2, 3, 4), numbers(2, 3, 4), []
    for at in range(30):
        more = numbers(2, 1, 4) + at
        window, whole = program(window, more)
        kept.append(whole)
        assert torch.equal(whole, torch.cat([expected, more], 1))
        expected = torch.cat([expected, more], 1)[:, -3:]
    assert load().rooms() - before <= 3


def test_what_is_as_cat_has_it_by_itself() -> None:
    step = step_along(0)
    past, new = torch.ones(2, 3), torch.ones(1, 3, dtype=torch.int64)
    assert step(past, new).dtype is torch.float32
    assert step(torch.empty(0), past).shape == (2, 3)
    assert step(torch.empty(0, 3), past).shape == (2, 3)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        step(past, torch.ones(1, 4))
    asked = torch.ones(2, 3, requires_grad=True)
    step(asked, past).sum().backward()
    assert torch.equal(asked.grad, torch.ones(2, 3))  # type: ignore[arg-type]
    with torch.inference_mode():
        assert step(step(past, past), past).is_inference()
