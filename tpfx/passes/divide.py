"""Divide every split in use among the ranks: as evenly as its units allow, remainders balanced.

Three KV heads on two devices are 2 + 1 in one layer and 1 + 2 in the next: the rank with fewer bytes so far
gets more.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.fx import Graph, Node

from ..ir.annotations import choice_of, dims_of, is_weight, layout_of
from ..ir.axes import find
from ..ir.layout import Split, local_size
from ..ir.nodes import bytes_of, is_tensor
from ..ir.shards import even_sizes


def divide(graph: Graph, ranks: int) -> None:
    """Divide the splits in use that no earlier graph has divided; the coarsest first, finer ones balance."""
    weights: dict[Split, float] = {}
    for node in graph.nodes:
        for split in splits_in_use(node):
            weights.setdefault(split, 0.0)
        layout = layout_of(node)
        if is_weight(node) and is_tensor(node) and isinstance(layout, Split):
            weights[layout] += bytes_of(node.meta["val"])
    loads = _loads(graph, ranks)
    for split in sorted(weights, key=lambda split: -weights[split] / split.units):
        if not split.rank_intervals:
            sizes = _sizes(split, loads)
            split.divide(sizes)
            for rank, size in enumerate(sizes):
                loads[rank] += weights[split] * size / split.units


def splits_in_use(node: Node) -> Iterator[Split]:
    """The splits that a node's tensors, and what its op takes, are held in."""
    choice = choice_of(node)
    held = (*choice.operands, *choice.results) if choice is not None else ()
    for layout in (*held, layout_of(node)):
        if isinstance(layout, Split):
            yield layout


def _loads(graph: Graph, ranks: int) -> list[float]:
    """The bytes that each rank already holds for sure."""
    loads = [0.0] * ranks
    for node in graph.nodes:
        if (
            node.op == "placeholder"
            and is_tensor(node)
            and isinstance(split := layout_of(node), Split)
            and split.rank_intervals
        ):
            for rank in range(ranks):
                share = 1.0
                for dim in dims_of(node):
                    size = find(dim).size
                    if isinstance(size, int) and size:
                        share *= float(local_size(dim, split, rank)) / size
                loads[rank] += share * bytes_of(node.meta["val"])
    return loads


def _sizes(split: Split, loads: list[float]) -> list[int]:
    outer = int(split.axes[0].size)
    ranks = len(loads)
    if len(split.axes) == 1 or outer >= ranks:
        inner = split.units // outer
        return [size * inner for size in even_sizes(outer, loads)]
    groups = even_sizes(ranks, [float(unit) for unit in range(outer)])  # ranks that share an outer unit
    return [
        size
        for group in groups
        for size in even_sizes(split.units // outer, [float(r) for r in range(group)])
    ]
