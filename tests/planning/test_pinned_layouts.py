"""Shards that an earlier graph gave a tensor are found again as a split of the axes of a new one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.fx import Graph
from torch.nn import functional as F

from tests.support.inferred import inferred
from tpfx.ir.annotations import dims_of, set_source, source_of
from tpfx.ir.layout import Replicate, Split
from tpfx.ir.shards import Shards, concrete
from tpfx.ir.splits import Splits
from tpfx.planning.pinned_layouts import match_pinned, pinned_layout


def product(*pinned: Shards | None) -> tuple[Graph, Splits]:
    """relu(x [3, 8] by a weight [12, 8]) by a weight [8, 12], whose inputs have these shards already."""
    weights = {"up": torch.zeros(12, 8), "down": torch.zeros(8, 12)}
    graph = inferred(
        lambda w, x: F.linear(torch.relu(F.linear(x, w["up"])), w["down"]), weights, torch.zeros(3, 8)
    )
    for node, shards in zip(graph.find_nodes(op="placeholder"), pinned, strict=False):
        set_source(node, replace(source_of(node), pinned=shards))
    return graph, Splits(graph, 2)


UNEVEN = Shards(((0, (((0, 5),), ((5, 12),))),))


def test_the_division_is_that_of_the_shards_for_all_that_carry_the_axis() -> None:
    graph, splits = product(UNEVEN)
    up, down, _ = graph.find_nodes(op="placeholder")
    match_pinned(graph, splits)
    layout = pinned_layout(up, splits)
    assert isinstance(layout, Split)
    assert concrete(dims_of(up), layout) == UNEVEN
    assert concrete(dims_of(down), layout) == Shards(((1, (((0, 5),), ((5, 12),))),))
    assert pinned_layout(down, splits) is None  # it may be chosen


def test_the_first_to_show_a_division_sets_it_and_others_are_gathered() -> None:
    graph, splits = product(UNEVEN, Shards(((1, (((0, 6),), ((6, 12),))),)))
    up, down, _ = graph.find_nodes(op="placeholder")
    match_pinned(graph, splits)
    assert isinstance(pinned_layout(up, splits), Split)
    assert pinned_layout(down, splits) == Replicate()


def test_shards_that_no_split_gives_are_gathered() -> None:
    interleaved = Shards(((0, (((0, 3), (6, 9)), ((3, 6), (9, 12)))),))
    graph, splits = product(interleaved)
    match_pinned(graph, splits)
    assert pinned_layout(graph.find_nodes(op="placeholder")[0], splits) == Replicate()
    assert all(not split.rank_intervals for split in splits)  # what did not fit has left nothing behind


def test_what_is_whole_stays_whole() -> None:
    graph, splits = product(Shards())
    match_pinned(graph, splits)
    assert pinned_layout(graph.find_nodes(op="placeholder")[0], splits) == Replicate()


def test_weights_come_before_what_is_kept() -> None:
    graph, splits = product(Shards(((0, (((0, 6),), ((6, 12),))),)), Shards(((1, (((0, 5),), ((5, 12),))),)))
    up, down, _ = graph.find_nodes(op="placeholder")
    set_source(up, replace(source_of(up), kind="state"))
    match_pinned(graph, splits)
    assert pinned_layout(up, splits) == Replicate()
    assert isinstance(pinned_layout(down, splits), Split)
