"""Every invariant of the table has graphs that break it, and it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.fx import Graph, GraphModule, Node

import tpfx
from tests.support.graphs import after, chosen, planned, read
from tpfx.ir.annotations import (
    Choice,
    bound_of,
    dims_of,
    layout_of,
    set_bound,
    set_choice,
    set_dims,
    set_gradients,
    set_layout,
    set_source,
    source_of,
)
from tpfx.ir.axes import Dim
from tpfx.ir.layout import Partial, Replicate, Split
from tpfx.ir.resharding import all_gather, all_reduce, shard
from tpfx.ir.shards import Shards
from tpfx.kernels.collectives import gather_shards
from tpfx.passes.invariants import LOCALIZED, check
from tpfx.passes.localize import localize
from tpfx.passes.pipeline import PASSES

aten, c10d = torch.ops.aten, torch.ops._c10d_functional
WHOLE, SUM = Replicate(), Partial()
TABLE = {(one.name, row.says): row for one in PASSES for row in one.holds_after}
TABLE |= {("localize", row.says): row for row in LOCALIZED}

MLP = """
    x: f64[3, 8]
    up: f64[16, 8] = parameter
    down: f64[8, 16] = parameter
    return linear(relu(linear(x, up)), down)
"""
COLUMN = """
    x: f64[3, 8]                 # input -> *
    w: f64[16, 8] = parameter    # input -> 0
    y = linear(x, w)             # split * 0 -> 0
    z = cos(y)                   # whole * -> *
    return z
"""
HEADS = """
    x: f64[3, 8]                 # input -> *
    w: f64[8, 8] = parameter     # input -> 2
    y = linear(x, w)             # split * 2 -> 2
    z = reshape(y, [3, 2, 4])    # split 2 -> 2
    return z
"""

Plant = Callable[[], Any]  # makes a graph, or the graphs of all ranks
PLANTS: list[tuple[str, str, int, Plant]] = []


def plant(stage: str, says: str, ranks: int = 2) -> Callable[[Plant], Plant]:
    """Say which invariant a graph breaks: the words that its statement begins with."""

    def add(function: Plant) -> Plant:
        PLANTS.append((stage, says, ranks, function))
        return function

    return add


def op(graph: Graph, target: Any) -> Node:
    """The first call of an op."""
    return next(iter(graph.find_nodes(op="call_function", target=target)))


def call_like(node: Node, target: Any, *args: Any) -> Node:
    """One more call, after a node, of which everything is known that is known of the node."""
    with node.graph.inserting_after(node):
        made = node.graph.call_function(target, args)
    made.meta = dict(node.meta)
    return made


def swap_first(graph: Graph) -> Graph:
    """The same with an op before what it takes."""
    first, second, *_ = graph.find_nodes(op="call_function", target=aten.linear.default)
    first.args = (second, first.args[1])
    return graph


# After normalize, simplify and infer_axes.


@plant("normalize", "fx finds")
def uses_before_definition() -> Graph:
    return swap_first(read(MLP))


@plant("normalize", "no product")
def a_product_with_a_bias() -> Graph:
    return read("x: f32[3, 4]\nw: f32[4, 5] = parameter\nb: f32[5] = parameter\nreturn addmm(b, x, w)")


@plant("normalize", "no product")
def a_convolution_with_a_bias() -> Graph:
    return read(
        "x: f32[2, 3, 8]\nw: f32[6, 3, 3] = parameter\nb: f32[6] = parameter\n"
        "return convolution(x, w, b, [1], [1], [1], False, [0], 1)"
    )


@plant("normalize", "a product with a transposed weight")
def a_product_with_a_transposed_weight() -> Graph:
    return read("x: f32[3, 4]\nw: f32[5, 4] = parameter\nreturn mm(x, t(w))")


@plant("normalize", "every view")
def a_view() -> Graph:
    return read("x: f32[3, 4]\nreturn view(x, [4, 3])")


@plant("simplify", "fx finds")
def a_name_twice() -> Graph:
    graph = read(MLP)
    op(graph, aten.relu.default).name = op(graph, aten.linear.default).name
    return graph


@plant("simplify", "no op does nothing")
def a_product_with_one() -> Graph:
    return read("x: f32[3, 4]\nreturn cos(mul(x, 1.0))")


@plant("simplify", "nothing is computed twice")
def a_cosine_twice() -> Graph:
    return read("x: f32[3, 4]\nreturn add(cos(x), cos(x))")


@plant("infer_axes", "every tensor has dimensions")
def a_tensor_without_dimensions() -> Graph:
    return read(MLP)


@plant("infer_axes", "every tensor has dimensions")
def a_dimension_of_another_size() -> Graph:
    graph = after("infer_axes", read(MLP))
    set_dims(op(graph, aten.relu.default), [Dim(3), Dim(15)])
    return graph


@plant("infer_axes", "every op has a rule")
def an_op_without_a_rule_bound_to_it() -> Graph:
    graph = after("infer_axes", read(MLP))
    relu = op(graph, aten.relu.default)
    made = call_like(relu, aten.cos.default, relu)
    made.meta = {"val": relu.meta["val"]}
    set_dims(made, dims_of(relu))
    return graph


@plant("infer_axes", "every op has a rule")
def a_rule_of_another_op() -> Graph:
    graph = after("infer_axes", read(MLP))
    bound = bound_of(op(graph, aten.linear.default))
    assert bound is not None
    set_bound(op(graph, aten.relu.default), bound)
    return graph


@plant("infer_axes", "a gradient has the axes")
def a_gradient_of_other_axes() -> Graph:
    graph = after("infer_axes", read("x: f32[4, 4]\nw: f32[4, 4] = parameter\nreturn cos(x), cos(w)"))
    set_gradients(graph.output_node(), {0: graph.find_nodes(op="placeholder")[1]})
    return graph


# After choose.


@plant("choose", "whatever is decided")
def an_op_without_a_choice() -> Graph:
    return after("infer_axes", read(MLP))


@plant("choose", "an op's rule allows")
def a_split_that_the_rule_does_not_have() -> Graph:
    graph = planned(read(MLP), "choose")
    product, relu = op(graph, aten.linear.default), op(graph, aten.relu.default)
    split = layout_of(product)
    set_choice(relu, Choice("split", (split,), (WHOLE,)))
    set_layout(relu, WHOLE)
    return graph


@plant("choose", "an op's rule allows")
def a_partial_sum_through_an_op_that_is_not_linear() -> Graph:
    graph = planned(read(MLP), "choose")
    relu = op(graph, aten.relu.default)
    set_choice(relu, Choice("pending", (SUM,), (SUM,)))
    set_layout(relu, SUM)
    return graph


@plant("choose", "an op's rule allows")
def a_whole_op_with_a_shard() -> Graph:
    graph = planned(read(MLP), "choose")
    relu = op(graph, aten.relu.default)
    set_choice(relu, Choice("whole", (layout_of(relu),), (layout_of(relu),)))
    return graph


@plant("choose", "an op's rule allows")
def random_numbers_in_shards() -> Graph:
    graph = read("x: f64[3, 8]\nw: f64[16, 8] = parameter\nreturn rand_like(linear(x, w))")
    planned(graph, "choose")
    random, weight = op(graph, aten.rand_like.default), graph.find_nodes(op="placeholder")[1]
    split = Split([dims_of(weight)[0]])
    set_choice(random, Choice("split", (split,), (split,)))
    set_layout(random, split)
    return graph


@plant("choose", "every tensor is in the layout")
def a_layout_that_no_choice_gives() -> Graph:
    graph = planned(read(MLP), "choose")
    set_layout(op(graph, aten.relu.default), SUM)
    return graph


# After divide.


Boxes = list[dict[Dim, tuple[int, int]]]  # the interval of each axis, for each rank


def divided_as(text: str, boxes: Callable[[Split], Boxes], ranks: int = 2) -> Graph:
    graph = chosen(text, ranks)
    split = layout_of(op(graph, aten.linear.default))
    assert isinstance(split, Split)
    split.rank_intervals = tuple(boxes(split))
    return graph


@plant("divide", "the ranks' intervals")
def a_split_that_is_not_divided() -> Graph:
    return divided_as(COLUMN, lambda split: [])


@plant("divide", "the ranks' intervals")
def a_rank_too_few() -> Graph:
    return divided_as(COLUMN, lambda split: [{split.axes[0]: (0, 16)}])


@plant("divide", "the ranks' intervals")
def a_unit_of_no_rank() -> Graph:
    return divided_as(COLUMN, lambda split: [{split.axes[0]: (0, 8)}, {split.axes[0]: (9, 16)}])


@plant("divide", "the ranks' intervals")
def a_unit_of_two_ranks() -> Graph:
    return divided_as(COLUMN, lambda split: [{split.axes[0]: (0, 9)}, {split.axes[0]: (8, 16)}])


@plant("divide", "the ranks' intervals", ranks=3)
def an_axis_without_interval() -> Graph:
    def boxes(split: Split) -> Boxes:
        return [{split.axes[0]: (0, 1)}, {split.axes[0]: (1, 2)}, {split.axes[0]: (2, 2)}]

    return divided_as(HEADS, boxes, 3)


@plant("divide", "the ranks' intervals", ranks=3)
def a_rank_with_parts_of_two_heads() -> Graph:
    def boxes(split: Split) -> Boxes:
        heads, width = split.axes
        return [
            {heads: (0, 1), width: (0, 2)},
            {heads: (0, 2), width: (2, 4)},
            {heads: (1, 2), width: (0, 2)},
        ]

    return divided_as(HEADS, boxes, 3)


@plant("divide", "a pinned input")
def a_pinned_input_that_moved() -> Graph:
    graph = chosen(COLUMN)
    weight = graph.find_nodes(op="placeholder")[1]
    pinned = Shards(((0, (((0, 9),), ((9, 16),))),))
    set_source(weight, replace(source_of(weight), pinned=pinned))
    return graph


# After insert.


@plant("insert", "fx finds")
def uses_before_definition_at_the_end() -> Graph:
    return swap_first(planned(read(MLP), "insert"))


@plant("insert", "every operand is in the layout")
def a_dropped_all_gather() -> Graph:
    graph = after("insert", chosen(COLUMN))
    gather = op(graph, all_gather)
    gather.replace_all_uses_with(gather.args[0])
    return graph


@plant("insert", "a partial sum is reduced once")
def a_sum_of_a_whole_value() -> Graph:
    graph = planned(read(MLP), "insert")
    reduced = op(graph, all_reduce)
    again = call_like(reduced, all_reduce, reduced, SUM)
    graph.output_node().args = ((again,),)
    return graph


@plant("insert", "a partial sum is reduced once")
def a_sum_twice() -> Graph:
    graph = planned(read(MLP), "insert")
    reduced = op(graph, all_reduce)
    call_like(reduced, all_reduce, *reduced.args)
    return graph


@plant("insert", "a value is converted once")
def a_gather_twice() -> Graph:
    graph = after("insert", chosen(COLUMN))
    gather = op(graph, all_gather)
    call_like(gather, all_gather, *gather.args)
    return graph


@plant("insert", "a value is converted once")
def a_shard_of_a_shard() -> Graph:
    graph = after("insert", chosen(COLUMN))
    product = op(graph, aten.linear.default)
    call_like(product, shard, product, layout_of(product)).meta.pop("tpfx_choice")
    return graph


@plant("insert", "no partial sum leaves")
def a_partial_sum_that_leaves() -> Graph:
    graph = planned(read(MLP), "insert")
    graph.output_node().args = ((op(graph, all_reduce).args[0],),)
    return graph


@plant("insert", "what is written to")
def a_copy_that_is_written_to() -> Graph:
    graph = read("x: f64[3, 8]\nc: f64[3, 8]\ny = cos(x)\ncopy_(c, y)\nreturn sin(y)")
    planned(graph, "insert")
    written = op(graph, aten.copy_.default)
    written.args = (op(graph, aten.cos.default), written.args[1])
    return graph


@plant("insert", "a gradient is laid out")
def a_gradient_in_another_layout() -> Graph:
    graph = after("insert", chosen(COLUMN))
    set_gradients(graph.output_node(), {0: graph.find_nodes(op="placeholder")[1]})
    return graph


# After localize.


SENDING = """
    x: f64[3, 8]                 # input -> *
    w: f64[16, 8] = parameter    # input -> 0
    v: f64[16, 8] = parameter    # input -> 1
    y = linear(x, w)             # split * 0 -> 0
    z = linear(x, v)             # split 1 1 -> +
    a = cos(y)                   # whole * -> *
    b = cos(z)                   # whole * -> *
    r = rand_like(a)             # whole * -> *
    return b, r
"""


def of_ranks(change: Callable[[Graph], None]) -> tuple[Graph, ...]:
    """A parallel graph and those of its ranks, the last of them changed."""
    graph = after("insert", chosen(SENDING))
    ranks = [localize(graph, rank, 2, "tp", rank == 0) for rank in range(2)]
    change(ranks[1])
    return (graph, *ranks)


@plant("localize", "a rank issues")
def a_collective_that_is_missing() -> tuple[Graph, ...]:
    def change(graph: Graph) -> None:
        wait = op(graph, c10d.wait_tensor.default)
        wait.replace_all_uses_with(wait.args[0].args[0])
        graph.erase_node(wait)
        graph.erase_node(op(graph, c10d.all_reduce_.default))

    return of_ranks(change)


@plant("localize", "a rank issues")
def a_collective_too_many() -> tuple[Graph, ...]:
    def change(graph: Graph) -> None:
        wait = op(graph, c10d.wait_tensor.default)
        call_like(wait, c10d.all_reduce.default, wait, "sum", "tp")

    return of_ranks(change)


@plant("localize", "a rank issues")
def a_sum_that_is_a_maximum() -> tuple[Graph, ...]:
    def change(graph: Graph) -> None:
        reduced = op(graph, c10d.all_reduce_.default)
        reduced.args = (reduced.args[0], "max", "tp")

    return of_ranks(change)


@plant("localize", "a rank issues")
def collectives_in_another_order() -> tuple[Graph, ...]:
    def change(graph: Graph) -> None:
        gather = op(graph, gather_shards)
        op(graph, c10d.all_reduce_.default).append(gather)

    return of_ranks(change)


DRAWING = """
    x: f64[3, 64]                 # input -> *
    y = rand_like(x)              # whole * -> *
    return y
"""


@plant("localize", "what draws")
def a_rank_that_draws_by_itself() -> tuple[Graph, ...]:
    graph = after("insert", chosen(DRAWING))
    return (graph, localize(graph, 0, 2, "tp", draws=True), with_branch(graph))


def with_branch(graph: Graph) -> Graph:
    """The graph of rank 1, and a branch in which the same is drawn, as a model has it."""
    rank, branch = localize(graph, 1, 2, "tp", draws=False), Graph()
    x = branch.placeholder("x")
    branch.output((branch.call_function(aten.rand_like.default, (x,)),))
    root = torch.nn.Module()
    root.branch = GraphModule(root, branch)
    (given,) = rank.find_nodes(op="placeholder")
    with rank.inserting_after(given):
        called = rank.get_attr("branch")
    with rank.inserting_after(called):
        rank.call_function(torch.ops.higher_order.cond, (given, called, called, (given,)))
    rank.owning_module = GraphModule(root, rank)
    return rank


@pytest.mark.parametrize(
    ("stage", "says", "ranks", "made"), [pytest.param(*one, id=one[-1].__name__) for one in PLANTS]
)
def test_what_is_planted_is_found(stage: str, says: str, ranks: int, made: Plant) -> None:
    rows = [row for (name, _), row in TABLE.items() if name == stage]
    (row,) = [row for row in rows if row.says.startswith(says)]
    with pytest.raises(tpfx.ShardingError) as error:
        check(stage, rows, made(), ranks)
    assert str(error.value).startswith(f"after {stage}, it does not hold that {row.says}: ")
    assert str(error.value).endswith("this is a bug of a pass of tpfx, not of the model: please report it")


def test_every_invariant_is_planted() -> None:
    planted = {
        (stage, row.says)
        for stage, says, *_ in PLANTS
        for (name, _), row in TABLE.items()
        if name == stage and row.says.startswith(says)
    }
    assert planted == set(TABLE)


def test_the_module_is_named() -> None:
    graph = read("x: f32[3, 4]\nreturn view(x, [4, 3])")
    view = op(graph, aten.view.default)
    view.meta["nn_module_stack"] = {"h": ("L['self'].layers.3", "Layer")}
    with pytest.raises(
        tpfx.ShardingError, match=r"every view is a reshape: view\w* \(of layers\.3\) is aten"
    ):
        check("normalize", PASSES[0].holds_after, graph, 2)


@pytest.mark.parametrize(("text", "count"), [(COLUMN, 2), (COLUMN, 5), (HEADS, 3), (HEADS, 4), (SENDING, 2)])
def test_sound_graphs_pass(text: str, count: int) -> None:
    graph = after("insert", chosen(text, count))
    ranks = [localize(graph, rank, count, "tp", rank == 0) for rank in range(count)]
    check("localize", LOCALIZED, (graph, *ranks), count)
