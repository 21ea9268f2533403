"""Convolutions: their rule, and what a rank does where it has no channels of some kind.

Channels are a product of groups and of what is inside a group: `(g i)` go in, `(g o)` come out. A depthwise
convolution has nothing but groups, a usual one has one group; the rule is the same.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from .annotations import dims_of
from .axes import Size
from .layout import local_size
from .lowering import Rank, split_of
from .rules import Bound, Call, Rule, arguments, tensor_nodes

aten = torch.ops.aten


def convolution(call: Call) -> Bound:
    """Channels may be split, and batches; what slides is whole."""
    slides = len(call.dims[0]) - 2
    space, kernel, after = (" ".join(f"{letter}{index}!" for index in range(slides)) for letter in "skt")
    single, inner, outer = call["groups"] == 1, *_inside(call)
    entering = "i" if single else "(g i)" if inner != 1 else "g"
    leaving = "o" if single else "(g o)" if outer != 1 else "g"
    weight = f"{entering} o" if call["transposed"] else f"{leaving} i"
    bias = f", {leaving}" if call.get("bias") is not None else ""
    pattern = f"n {entering} {space}, {weight} {kernel}{bias} -> n {leaving} {after}"
    if bias:  # every rank would add it to its addend, so what is contracted must be whole
        pattern = pattern.replace("i", "i!")
    return Rule(pattern, linear=() if bias else ((0,), (1,))).bind(call)


def _inside(call: Call) -> tuple[Size, Size]:
    """How many channels a group takes in and gives out."""
    groups, weight = call["groups"], call.operands[1].meta["val"].shape
    first, second = call.size(weight[0]), call.size(weight[1])
    return (first // groups, second) if call["transposed"] else (second, first // groups)


def emit_convolution(local: Rank, node: Node) -> Node:
    """The convolution of this rank's channels; in the place of none there is one, of zeros."""
    args, transposed = dict(local.args(node)), arguments(node)["transposed"]
    (entering, first, second, _), (groups, inner, outer) = _channels(local, node), _local_groups(local, node)
    args["groups"] = some = max(1, groups)
    enter, leave = some * max(1, inner), some * max(1, outer)
    wanted = (enter, max(1, outer)) if transposed else (leave, max(1, inner))
    slides = node.meta["val"].dim() - 2
    args["input"] = _grown(local, args["input"], (0, enter - entering), slides)
    args["weight"] = _grown(local, args["weight"], (wanted[0] - first, wanted[1] - second), slides)
    own = groups * outer
    if args["bias"] is not None and own != leave:
        args["bias"] = local.call(aten.constant_pad_nd, args["bias"], [0, leave - own])
    result = local.call(aten.convolution.default, *args.values())
    return result if own == leave else local.call(aten.slice.Tensor, result, 1, 0, own)


def _channels(local: Rank, node: Node) -> tuple[int, int, int, int]:
    """This rank's part of the channels: what enters, the weight's two dimensions, what leaves."""
    x, weight = (dims_of(operand) for operand in list(tensor_nodes(node))[:2])
    sizes = [local_size(dim, split_of(node), local.rank) for dim in (x[1], *weight[:2], dims_of(node)[1])]
    entering, first, second, leaving = (int(size) for size in sizes)
    return entering, first, second, leaving


def _local_groups(local: Rank, node: Node) -> tuple[int, int, int]:
    """How many groups this rank has, and how many channels go into and come out of each."""
    args, weight = arguments(node), list(tensor_nodes(node))[1].meta["val"]
    entering, first, second, leaving = _channels(local, node)
    whole, all_groups = int(weight.shape[1]), args["groups"]
    # Unless what is inside a group is split, the side that the weight names by itself tells the groups.
    groups = (leaving if args["transposed"] else entering) // whole if second == whole else all_groups
    other = first // groups if groups else int(weight.shape[0]) // all_groups
    return (groups, other, second) if args["transposed"] else (groups, second, other)


def _grown(local: Rank, value: Node, missing: tuple[int, int], slides: int) -> Node:
    """A value with so many more channels, zeros, in its first two dimensions."""
    if not any(missing):
        return value
    return local.call(aten.constant_pad_nd, value, [0, 0] * slides + [0, missing[1], 0, missing[0]])
