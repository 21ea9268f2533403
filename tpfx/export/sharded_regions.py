"""Which modules of a plan are split, and which of them pass shards to each other without a collective.

q_proj, k_proj, v_proj  →  heads, split  →  o_proj        a region: four members, open to each other
lm_head  →  gathered at once                              a member that is closed: whole in, whole out

A member is a `Linear` or an `Embedding` whose weight is split along one dimension. Other tools split such
modules, and leave the code between them as it is; a region that asks for more is refused, and its members are
then closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch.fx import Node

from ..ir.annotations import choice_of, is_gathered_for_caller, is_weight, layout_of, source_of
from ..ir.layout import Partial, Split
from ..ir.nodes import is_tensor, tensor_nodes
from ..ir.parallel_graph import ParallelGraph
from ..ir.provenance import module_path, op_name
from ..ir.resharding import all_gather, shard
from ..torch_internals.fx import OpOverload
from .sharded_modules import CONVERSIONS, Owners, SplitModule, as_chunks, split_modules_of, unlike_chunks


@dataclass
class Region:
    """What one split of one graph runs through.

    Attributes:
        parallel: the graph.
        split: as it is planned.
        division: the same axes as other tools divide them, whose shards of a weight are `torch.chunk`'s.
        weights: the inputs of the graph that are held in the split.
        members: the modules whose weights these are.
        open: those of them that take or give shards; the others are whole in and out.
        summed: modules whose weights every rank applies to its shard: gradients of these are sums over ranks.
        refused: why the code between the members cannot stay as it is; empty where it can.
    """

    parallel: ParallelGraph
    split: Split
    division: Split
    weights: list[Node]
    members: dict[str, SplitModule] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    summed: set[str] = field(default_factory=set)
    refused: str = ""

    def active(self, node: Node) -> bool:
        """Whether an op is carried out on shards, not counting what happens inside of closed members."""
        choice = choice_of(node)
        if node.target in CONVERSIONS or choice is None:
            return False
        return self.split in (*choice.operands, *choice.results) and not self.closes(_path(node))

    def closes(self, path: str) -> bool:
        """Whether this is a member that is whole in and out."""
        return path in self.members and path not in self.open


def _path(node: Node) -> str:
    """The module that an op comes from, or that a weight belongs to."""
    return source_of(node).name.rpartition(".")[0] if node.op == "placeholder" else module_path(node)


def survey(owners: Owners, parallel: ParallelGraph) -> tuple[list[Region], dict[str, str]]:
    """The regions of a plan, and why modules that are split too are left out."""
    regions: list[Region] = []
    left: dict[str, str] = {}
    for split, weights in _split_weights(parallel).items():
        region = Region(parallel, split, as_chunks(split, weights), weights)
        for weight in weights:
            found, reasons = split_modules_of(owners, weight, split)
            region.members.update({member.module: member for member in found})
            left = reasons | left
            if reasons:
                region.refused = "split with {}: {}".format(*next(iter(reasons.items())))
        regions.append(region)
    for region in regions:
        _open(region)
        region.refused = region.refused or _refusal(region, owners)
    return regions, left


def _split_weights(parallel: ParallelGraph) -> dict[Split, list[Node]]:
    found: dict[Split, list[Node]] = {}
    for node in parallel.graph.find_nodes(op="placeholder"):
        layout = layout_of(node)
        if is_tensor(node) and isinstance(layout, Split) and source_of(node).kind != "tangent":
            found.setdefault(layout, []).append(node)
    return found


# Whether the code between members may stay as it is.


def _open(region: Region) -> None:
    """Find the members that take or give shards."""
    ops = [node for node in region.parallel.graph.nodes if choice_of(node) and node.target not in CONVERSIONS]
    for node in ops:
        member = region.members.get(module_path(node))
        if member is None or node.op == "placeholder":
            continue
        if member.way == "column" and layout_of(node) == region.split and not _gathered(node, member):
            region.open.add(member.module)
        if member.way == "row" and any(_enters(value, member, region.split) for value in tensor_nodes(node)):
            region.open.add(member.module)


def _gathered(node: Node, member: SplitModule) -> bool:
    """Whether the shards of a value are put together before anything outside of its module sees it."""
    outside = [user for user in node.users if user.op == "output" or module_path(user) != member.module]
    return all(
        user.target is all_gather or (user.op == "output" and is_gathered_for_caller(node))
        for user in outside
    )


def must_be_whole(value: Node) -> bool:
    """Whether a result is for the caller alone, as logits are; the graph uses keys and values too, though a
    slice of them may be what it returns."""
    while isinstance(value.target, OpOverload) and value.target.is_view and len(value.users) == 1:
        value = value.all_input_nodes[0]
    return is_gathered_for_caller(value)


def _enters(value: Node, member: SplitModule, split: Split) -> bool:
    """Whether a value comes into a module split."""
    inside = value.op == "placeholder" or module_path(value) == member.module
    return layout_of(value) == split and value.target is not shard and not inside


def _refusal(region: Region, owners: Owners) -> str:
    """Why the members of a region cannot be left open to each other; empty where nothing is against it."""
    ops = [node for node in region.parallel.graph.nodes if node.op == "call_function" and region.active(node)]
    if not region.open:
        return "no module takes or gives its shards" if ops else ""
    for node in ops:
        choice = choice_of(node)
        assert choice is not None
        summing = any(isinstance(layout, Partial) for layout in choice.results)
        if summing and getattr(region.members.get(module_path(node)), "way", "") != "row":
            return f"{where(node)} sums over what is split, outside of a Linear"
    tied = [w for w in region.weights if len(owners.holding(source_of(w).name)) > 1]
    cuts = (unlike_chunks(weight, region.division) for weight in region.weights)
    return (
        (f"{source_of(tied[0]).name} is tied to another" if tied else "")
        or next(filter(None, cuts), "")
        or _lone(region, owners, ops)
    )


def _lone(region: Region, owners: Owners, ops: Iterable[Node]) -> str:
    """Record whose gradients are sums over the ranks; why there is no way to sum one of them."""
    trained = _trained(region.parallel)
    for node in ops:
        for value in _taken_whole(node):
            if value not in trained or getattr(region.members.get(module_path(node)), "way", "") == "column":
                continue
            if not _alone(value, node, region, owners):
                return f"{where(node)} takes a whole value: no style sums the gradient of that"
            region.summed.add(module_path(node))
    return ""


def _taken_whole(node: Node) -> Iterator[Node]:
    choice = choice_of(node)
    assert choice is not None
    for value, wanted in zip(tensor_nodes(node), choice.operands, strict=False):
        if not isinstance(wanted, Split):
            yield value


def _trained(parallel: ParallelGraph) -> set[Node]:
    """What gradients flow through: parameters, and what is computed from them."""
    found: set[Node] = set()
    for node in parallel.graph.nodes:
        parameter = node.op == "placeholder" and source_of(node).kind == "parameter"
        if parameter or any(value in found for value in node.all_input_nodes):
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor) or value.is_floating_point():
                found.add(node)
    return found


def _alone(value: Node, node: Node, region: Region, owners: Owners) -> bool:
    """Whether a value is made of weights that its module alone uses, for shards, as all of its weights."""
    path = module_path(node)
    module = owners.modules.get(path)
    behind = _weights_behind(value, path)
    if module is None or behind is None:
        return False
    inside = {id(weight) for weight in module.parameters(recurse=False)}
    inputs = region.parallel.graph.find_nodes(op="placeholder")
    own = [one for one in inputs if is_weight(one) and id(owners.weights[source_of(one).name]) in inside]
    held_here = all(len(owners.holding(source_of(one).name)) == 1 for one in own)
    return held_here and behind <= set(own) and all(_for_shards(one, path, region) for one in own)


def _weights_behind(value: Node, path: str) -> set[Node] | None:
    """The inputs that a value is computed from in a module; None where it is not computed there."""
    if value.op == "placeholder":
        return {value}
    if module_path(value) != path:
        return None
    found = [_weights_behind(operand, path) for operand in value.all_input_nodes]
    return None if None in found else {weight for weights in found for weight in weights or ()}


def _for_shards(value: Node, path: str, region: Region) -> bool:
    """Whether a value is used in one module alone, in the end by ops on shards."""
    return all(
        module_path(user) == path and (region.active(user) or _for_shards(user, path, region))
        for user in value.users
    )


def where(node: Node) -> str:
    """A node as people find it: its module and its op."""
    return f"{op_name(node)} in {module_path(node) or 'the model'}"
