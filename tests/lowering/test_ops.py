"""Each lowering by itself: an op split unevenly, one rank with nothing, and joined again, is the op."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch.fx import Graph, Interpreter, Node

from tests.support.lowering_cases import CASES, Case
from tpfx.ir.annotations import Choice, bound_of, set_choice, set_dims, set_layout
from tpfx.ir.axes import Dim, find
from tpfx.ir.axes_text import read
from tpfx.ir.layout import Layout, Partial, Split
from tpfx.ir.nodes import is_tensor, result_index, tensor_nodes
from tpfx.ir.op_dims import Dims
from tpfx.ir.shards import concrete
from tpfx.kernels.collectives import combine_partials
from tpfx.kernels.slices import join_shards, local_shape, take
from tpfx.lowering.ops import LOWERINGS
from tpfx.passes.localize import localize
from tpfx.planning.choices import split_choice
from tpfx.rules.bind import bind
from tpfx.rules.rule import Lowering
from tpfx.rules.table import rule_for
from tpfx.torch_internals.fake import FakeTensorMode


def graph_of(case: Case) -> tuple[Graph, Node, dict[str, Dim]]:
    """One call, bound to its rule, that returns each of its results."""
    graph, mode, names = Graph(), FakeTensorMode(), dict[str, Dim]()
    texts = iter(case.dims)

    def operand(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        case.values.append(value)
        node = graph.placeholder(f"operand{len(case.values)}")
        node.meta["val"] = mode.from_tensor(value)
        set_dims(node, read(next(texts), names))
        return node

    case.values.clear()
    node = graph.call_function(case.op, tuple(map(operand, case.args)))
    with mode:
        node.meta["val"] = case.op(*(arg.meta["val"] if isinstance(arg, Node) else arg for arg in node.args))
    bind(node, rule_for(case.op)).settle()
    if is_tensor(node):
        graph.output((node,))
        return graph, node, names
    items = [graph.call_function(operator.getitem, (node, at)) for at in range(len(node.meta["val"]))]
    for item, value in zip(items, node.meta["val"], strict=True):
        item.meta["val"] = value
    graph.output(tuple(items))
    return graph, node, names


def decide(node: Node, choice: Choice) -> None:
    """Record how the call is carried out."""
    set_choice(node, choice)
    if is_tensor(node):
        set_layout(node, choice.results[0])
    for operand, layout in zip(tensor_nodes(node), choice.operands, strict=True):
        set_layout(operand, layout)
    for item in node.users:
        if item.target is operator.getitem:
            layout = choice.results[result_index(item)]
            set_choice(item, Choice("item", (), (layout,)))
            set_layout(item, layout)


def shards(value: torch.Tensor, dims: Dims, layout: Layout) -> list[torch.Tensor]:
    """What each rank has of an operand."""
    where = concrete(dims, layout).dims if isinstance(layout, Split) else ()
    return [take(value, where, rank) for rank in range(3)]


def together(made: list[torch.Tensor], dims: Dims, layout: Layout, shape: torch.Size) -> torch.Tensor:
    """The whole of what the ranks have."""
    if isinstance(layout, Split):
        where = concrete(dims, layout).dims
        for rank, shard in enumerate(made):
            assert list(shard.shape) == local_shape(shape, where, rank)
        return join_shards(made, where, shape)
    if isinstance(layout, Partial):
        return combine_partials(made, layout.op)
    assert all(torch.equal(one, made[0]) for one in made)
    return made[0]


def kind_of(choice: Choice) -> str:
    """What the first result is: "split", "whole", or how partial ones are joined."""
    layout = choice.results[0]
    return "split" if isinstance(layout, Split) else layout.op if isinstance(layout, Partial) else "whole"


@pytest.mark.parametrize("name", CASES)
def test_ranks_together_give_what_the_op_gives(name: str) -> None:
    case = CASES[name]
    graph, node, names = graph_of(case)
    bound = bound_of(node)
    assert bound is not None
    axis = names[case.along] if isinstance(case.along, str) else bound.results[case.along[0]][case.along[1]]
    split = Split((find(axis),))
    split.divide(case.sizes)
    choice = split_choice(bound, split)
    assert choice is not None and kind_of(choice) == case.layout
    decide(node, choice)
    held = [
        shards(value, dims, layout)
        for value, dims, layout in zip(case.values, bound.operands, choice.operands, strict=True)
    ]
    results, written = [], []
    for rank in range(3):
        local = localize(graph, rank, 3, "none", rank == 0)
        written.append(calls(local))
        results.append(Interpreter(torch.nn.Module(), graph=local).run(*(own[rank] for own in held)))
    assert written[0] == list(case.writes)
    expected = case.op(*case.args)
    expected = [expected] if isinstance(expected, torch.Tensor) else expected
    for at, (whole, layout) in enumerate(zip(expected, choice.results, strict=True)):
        found = together([result[at] for result in results], bound.results[at], layout, whole.shape)
        torch.testing.assert_close(found, whole, rtol=case.tolerance, atol=case.tolerance)


def calls(graph: Graph) -> list[str]:
    """What a rank's graph calls, by name."""
    targets = [node.target for node in graph.nodes if node.op == "call_function"]
    names = [getattr(target, "_opname", None) or target.__name__ for target in targets]
    return [name for name in names if name != "getitem"]


def test_every_name_has_its_function() -> None:
    assert set(LOWERINGS) == set(Lowering)


def test_every_lowering_and_every_column_has_a_case() -> None:
    rules = [rule_for(case.op) for case in CASES.values()]
    assert {rule.lower for rule in rules if rule is not None} - {None} == set(Lowering)
    columns = {(rule.pad_empty_shards, rule.contiguous, rule.shape is not None) for rule in rules if rule}
    assert {(True, False, False), (True, True, False), (False, False, True)} <= columns


def test_a_rank_with_nothing_pads_and_cuts() -> None:
    """avg_pool2d refuses what has no channels."""
    case = CASES["a column: padded"]
    graph, node, names = graph_of(case)
    split = Split((find(names["c"]),))
    split.divide((1, 0, 3))
    bound = bound_of(node)
    assert bound is not None
    choice = split_choice(bound, split)
    assert choice is not None
    decide(node, choice)
    written = [calls(localize(graph, rank, 3, "none", rank == 0)) for rank in range(3)]
    assert written == [["avg_pool2d"], ["constant_pad_nd", "avg_pool2d", "slice"], ["avg_pool2d"]]
