"""Attention whose scores are changed by functions, on a rank that has some of the examples and heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.fx import GraphModule

from ..ir.nodes import copy_graph
from ..ir.shards import Pieces

# The examples and the heads of queries that a rank has; (): all of them.
Owned = tuple[Pieces, Pieces]

# The arguments that are called, or whose last element is, and where these take the example; the head is next.
_CALLED = {"score_mod": 1, "fw_graph": 1, "joint_graph": 1, "block_mask": 0}
_told: WeakKeyDictionary[GraphModule, dict[Owned, GraphModule]] = WeakKeyDictionary()


def attention_shard(
    op: Callable[..., Any], names: Sequence[str], owned: Owned, wanted: Sequence[bool], *args: Any
) -> Any:
    """`op(*args)`, whose functions are told which example and which head of the whole a rank's are.

    Args:
        op: `flex_attention`, or its backward pass.
        names: of its arguments.
        owned: what the rank has.
        wanted: which of the buffers that functions of scores read have gradients: some releases of torch ask
            the buffers themselves, which a rank has as plain tensors.
        args: the arguments, tensors as the rank has them.
    """
    given = dict(zip(names, args, strict=False))
    for name, at in _CALLED.items():
        if name in given:
            given[name] = _of_the_whole(given[name], at, owned)
    if wanted:
        buffers = zip(given["score_mod_other_buffers"], wanted, strict=True)
        given["score_mod_other_buffers"] = tuple(
            buffer.detach().requires_grad_() if asked else buffer for buffer, asked in buffers
        )
    return op(*given.values())


def _of_the_whole(called: Any, at: int, owned: Owned) -> Any:
    """A graph, or a tuple that ends in one, whose arguments from here on are an example and a head."""
    if isinstance(called, tuple):
        return *called[:-1], _of_the_whole(called[-1], at, owned)
    if called is None or not any(owned):
        return called
    known = _told.setdefault(called, {})
    if owned not in known:
        known[owned] = _rewritten(called, at, owned)
    return known[owned]


def _rewritten(module: GraphModule, at: int, owned: Owned) -> GraphModule:
    made = copy_graph(module)
    inputs = made.graph.find_nodes(op="placeholder")
    for index, mine in zip(inputs[at : at + 2], owned, strict=True):
        if mine and index.users:
            with made.graph.inserting_after(inputs[-1]):
                whole = made.graph.call_function(in_the_whole, (index, mine))
            index.replace_all_uses_with(whole, lambda user, whole=whole: user is not whole)
    made.recompile()
    return made


def in_the_whole(index: torch.Tensor, owned: Pieces) -> torch.Tensor:
    """Which index of a whole dimension an index of what a rank owns of it is."""
    found, held = index, 0
    for start, stop in owned:
        there = index + (start - held) if start != held else index
        found = torch.where(index >= held, there, found) if held else there
        held += stop - start
    return found
