"""Whether the code of a model computes the right thing where its modules pass shards to each other.

    x.view(b, s, -1, 16)      does, with 2 of 4 heads on a device
    x.view(b, s, 4, 16)       does not

The model is captured again, with weights as large as one rank's shard of them, and compared op by op with the
plan: the same ops, with the same arguments, on values of the size that the plan gives that rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch.fx import Graph, GraphModule, Node

from ..capture.capture import capture
from ..capture.inputs import Inputs
from ..errors import TpfxError
from ..ir.annotations import bound_of, choice_of, dims_of, layout_of, source_of
from ..ir.axes import Size
from ..ir.layout import Split, carries, local_size
from ..ir.nodes import arguments, is_tensor, result_tensors, size_of, tensor_nodes
from ..ir.op_dims import Dims
from ..ir.parallel_graph import ParallelGraph
from ..ir.resharding import all_gather, shard
from ..passes.normalize import normalize
from ..passes.simplify import simplify
from ..rules import rule_of
from ..rules.rule import Lowering
from ..torch_internals.fake import FakeTensor
from .sharded_modules import CONVERSIONS, chunks
from .sharded_regions import Region, must_be_whole, where

# What has the value that it is given. Whether a copy is needed depends on strides.
_SAME_VALUE = (*CONVERSIONS, torch.ops.aten.clone.default)
# What `localize` does for these is no more than calling the op on shards, where no shard is empty.
_CALLED = (None, Lowering.LINEAR, Lowering.MEAN, Lowering.EXTREME, Lowering.SQUEEZE)
# And for these, where they work along a dimension that is not split.
_ALONG = (Lowering.SLICE, Lowering.SELECT, Lowering.SPLIT, Lowering.GATHER, Lowering.SCATTER)


def rehearse(
    model: torch.nn.Module,
    parallels: Sequence[ParallelGraph],
    regions: Sequence[Region],
    inputs: Inputs | None,
) -> str:
    """Why the code between the open members of regions does not compute with shards; empty where it does.

    Args:
        model: the model, on any device; it is left as it was.
        parallels: all of its planned graphs.
        regions: the regions that are to work on shards, all others being whole.
        inputs: what the graphs were captured with.
    """
    symbolic = any(
        isinstance(node.meta.get("val"), torch.SymInt) for one in parallels for node in _inputs(one.graph)
    )
    for rank in _different_ranks(regions):
        try:
            with _shards_of_weights(model, regions, rank):
                captured = capture(model, inputs, symbolic=symbolic)
        except TpfxError as error:
            return _failure(error)
        if [_names(one.graph) for one in parallels] != [[s.name for s in one.sources] for one in captured]:
            return "its code computes other graphs with shards"
        for parallel, one in zip(parallels, captured, strict=True):
            normalize(one.module.graph)
            simplify(one.module.graph)
            own = [region for region in regions if region.parallel is parallel]
            reason = _Comparison(parallel, own, rank, len(parallels) == 1).run(one.module)
            if reason:
                return reason
    return ""


def _failure(error: TpfxError) -> str:
    """Why code cannot compute with shards, from where it fails."""
    frames = re.findall(r'File "[^"]*?([^"/]+)", line (\d+), in (\w+)\n\s*(.+)', str(error.__cause__))
    if not frames:
        return f"its code cannot compute with shards: {error}"
    file, line, function, code = frames[-1]
    return f"its code cannot compute with shards: {file}:{line}, in {function}: {code}"


def _inputs(graph: Graph) -> list[Node]:
    return list(graph.find_nodes(op="placeholder"))


def _names(graph: Graph) -> list[str]:
    return [source_of(node).name for node in _inputs(graph)]


def _different_ranks(regions: Sequence[Region]) -> list[int]:
    """One of the ranks that hold shards of the same sizes, for each of the sizes that there are."""
    found: dict[Any, int] = {}
    for rank in range(regions[0].parallel.ranks):
        boxes = [region.division.rank_intervals[rank].values() for region in regions]
        found.setdefault(tuple(stop - start for box in boxes for start, stop in box), rank)
    return list(found.values())


@contextmanager
def _shards_of_weights(model: torch.nn.Module, regions: Sequence[Region], rank: int) -> Iterator[None]:
    """Weights of the size of a rank's shard, in the open members of regions, while this lasts."""
    ranks, before = regions[0].parallel.ranks, []
    ways = {path: region.members[path].way for region in regions for path in region.open}
    try:
        for path, way in ways.items():
            table = model.get_submodule(path)._parameters
            before.append((table, dict(table)))
            for name, weight in table.items():
                if weight is not None and (name == "weight" or way == "column"):
                    table[name] = _shard(weight, 1 if way == "row" else 0, ranks, rank)
        yield
    finally:
        for table, values in before:
            table.update(values)


def _shard(weight: torch.nn.Parameter, dim: int, ranks: int, rank: int) -> torch.nn.Parameter:
    start, stop = chunks(weight.shape[dim], ranks)[rank]
    shape = [stop - start if at == dim else extent for at, extent in enumerate(weight.shape)]
    return torch.nn.Parameter(torch.empty(shape, dtype=weight.dtype, device="meta"), weight.requires_grad)


class _Comparison:
    """A plan's graph beside the graph of the same code with shards of weights."""

    def __init__(self, parallel: ParallelGraph, regions: Sequence[Region], rank: int, alone: bool) -> None:
        self.parallel, self.rank, self.alone = parallel, rank, alone
        self.regions = {region.split: region for region in regions}
        self.made: dict[Node, Node] = {}
        self.symbols: dict[sympy.Symbol, Size] = {}

    def run(self, module: GraphModule) -> str:
        """The first thing that differs; empty where nothing does."""
        meant = [node for node in self.parallel.graph.nodes if node.target not in _SAME_VALUE]
        found = [node for node in module.graph.nodes if node.target not in _SAME_VALUE]
        for node, other in zip(meant, found, strict=False):
            reason = self._differs(node, other)
            if reason:
                return reason
            self.made[node] = other
        return "" if len(meant) == len(found) else "its code computes more or less with shards"

    def _differs(self, node: Node, other: Node) -> str:
        if node.op != other.op or (node.op == "call_function" and node.target is not other.target):
            return f"{where(node)}: its code computes something else with shards"
        if node.op == "placeholder" and isinstance(node.meta.get("val"), torch.SymInt):
            self._name(node.meta["val"], other.meta["val"])
        if node.op == "output":
            return self._differs_in_results(node, other)
        given = [[self._size(extent) for extent in value.shape] for value in result_tensors(other)]
        if given != self._sizes(node):
            return (
                f"{where(node)} gives {_text(given)} with shards, and {_text(self._sizes(node))} is planned"
            )
        if node.op == "get_attr":
            same = _same_constant(node, other)
            return "" if same else f"{where(node)}: a constant depends on the size of shards"
        return self._differs_in_arguments(node, other) if node.op == "call_function" else ""

    # Results.

    def _region(self, node: Node) -> Region | None:
        """The region of which a node holds, or works on, shards."""
        choice = choice_of(node)
        held = (*choice.operands, *choice.results) if choice is not None else ()
        for layout in (layout_of(node), *held):
            region = self.regions.get(layout) if isinstance(layout, Split) else None
            if region is not None and region.active(node):
                return region
        return None

    def _sizes(self, node: Node) -> list[list[Size]]:
        region, bound, choice = self._region(node), bound_of(node), choice_of(node)
        if not is_tensor(node) and (bound is None or choice is None):
            return [[size_of(extent) for extent in value.shape] for value in result_tensors(node)]
        if is_tensor(node):
            return [self._local(node, dims_of(node), layout_of(node), region)]
        assert bound is not None and choice is not None
        pairs = zip(bound.results, choice.results, result_tensors(node), strict=True)
        return [self._local(value, dims, layout, region) for dims, layout, value in pairs]

    def _local(self, of: Node | torch.Tensor, dims: Dims, layout: Any, region: Region | None) -> list[Size]:
        value = of.meta["val"] if isinstance(of, Node) else of
        if region is None or layout != region.split:
            return [size_of(extent) for extent in value.shape]
        extents = zip(dims, value.shape, strict=True)
        return [
            local_size(dim, region.division, self.rank) if carries(dim, region.split) else size_of(extent)
            for dim, extent in extents
        ]

    def _differs_in_results(self, output: Node, other: Node) -> str:
        for value in tensor_nodes(output):
            split = value.target not in CONVERSIONS and self._region(value) is not None
            if split and isinstance(layout_of(value), Split) and (must_be_whole(value) or not self.alone):
                return f"{where(value)} is a result of the model, and split"
        return "" if self._same(output.args, other.args) else "its code returns something else with shards"

    # Sizes.

    def _name(self, meant: Any, found: Any) -> None:
        symbol = size_of(found)
        if isinstance(symbol, sympy.Symbol):
            self.symbols[symbol] = size_of(meant)

    def _size(self, extent: Any) -> Size:
        size = size_of(extent)
        return size if isinstance(size, int) else size.xreplace(self.symbols)

    # Arguments.

    def _differs_in_arguments(self, node: Node, other: Node) -> str:
        if isinstance(node.meta.get("val"), torch.SymInt):
            return ""  # where it is used, its value counts
        rule, region = rule_of(node), self._region(node)
        if region is not None and not _called_on_shards(node, region):
            return f"{where(node)} works along what is split"
        if any(self._converts(value, region) for value in tensor_nodes(node)):
            return f"{where(node)} needs whole what is split, or split what is whole"
        found = arguments(other)
        for name, value in arguments(node).items():
            is_shape = rule is not None and region is not None and name == rule.shape
            if not is_shape and not self._same(value, found.get(name)):
                return f"{where(node)}: its code gives it other arguments with shards"
        return ""

    def _converts(self, value: Node, region: Region | None) -> bool:
        """Whether an operand would have to be gathered, or cut, outside of a member that does so."""
        while value.target in _SAME_VALUE:
            source = value.all_input_nodes[0]
            if value.target is all_gather and self._region(source) is not None:
                return True
            if value.target is shard and region is not None:
                return True
            value = source
        return False

    def _same(self, meant: Any, found: Any) -> bool:
        if isinstance(meant, Node) and isinstance(found, Node):
            if isinstance(meant.meta.get("val"), torch.SymInt):
                return self._size(found.meta["val"]) == size_of(meant.meta["val"])
            return self.made[_origin(meant)] is _origin(found)
        if isinstance(meant, (list, tuple)) and isinstance(found, (list, tuple)):
            return len(meant) == len(found) and all(map(self._same, meant, found))
        return type(meant) is type(found) and bool(meant == found)


def _origin(value: Node) -> Node:
    """The value that something is a copy of, or is brought to another layout from."""
    while value.target in _SAME_VALUE:
        value = value.all_input_nodes[0]
    return value


def _called_on_shards(node: Node, region: Region) -> bool:
    """Whether a rank calls the op on its shards with the arguments that the whole would be given."""
    rule = rule_of(node)
    if rule is None or rule.lower in _CALLED:
        return True
    dims, known = dims_of(next(tensor_nodes(node))), arguments(node)
    return rule.lower in _ALONG and not carries(dims[known["dim"] % len(dims)], region.split)


def _same_constant(node: Node, other: Node) -> bool:
    """Whether two graphs hold the same under a name."""
    meant, found = (getattr(one.graph.owning_module, str(one.target), None) for one in (node, other))
    if not isinstance(meant, torch.Tensor) or not isinstance(found, torch.Tensor):
        return node.target == other.target and type(meant) is type(found)
    if isinstance(meant, FakeTensor) or isinstance(found, FakeTensor):
        return node.target == other.target
    return torch.equal(meant, found)


def _text(sizes: Sequence[Sequence[Size]]) -> str:
    return " and ".join(f"[{', '.join(map(str, extents))}]" for extents in sizes)
