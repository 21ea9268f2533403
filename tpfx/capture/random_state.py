"""Random numbers between forward and backward: what draws in which, and what is drawn a second time.

An op that torch's partitioner knows to draw, and that a checkpoint has computed again, is drawn again from
the state that the forward pass has saved. Whatever else draws is computed once, in the pass where the model
does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy

from ..errors import TpfxError
from ..ir.nodes import is_getitem
from ..ir.provenance import module_path, source_line
from ..rules.random_ops import (
    calls_in_order,
    has_random_tag,
    inner_draws,
    is_opaque,
    is_random,
    may_draw,
    may_draw_inside,
)
from ..torch_internals.fx import HigherOrderOperator, overload_of

_RECOMPUTED = (CheckpointPolicy.MUST_RECOMPUTE, CheckpointPolicy.PREFER_RECOMPUTE)


def pin_draws(joint: Graph) -> None:
    """Say of each node of a joint graph that draws in which pass it does, and have it saved if need be."""
    forward = False  # torch tags nodes, but those of a backward function of the model's own
    for node in reversed(joint.nodes):
        tag = node.meta.get("partitioner_tag")
        forward |= tag == "is_forward"
        if not may_draw(node) and not may_draw_inside(node):
            continue
        if tag in ("is_backward", "must_be_in_backward") or not forward:
            node.meta["partitioner_tag"] = "must_be_in_backward"
        elif not (is_random(node) and is_recomputed(node)):
            node.meta["partitioner_tag"] = "must_be_in_forward"
            for saved in with_items(node):
                saved.meta["recompute"] = CheckpointPolicy.MUST_SAVE


@contextmanager
def hidden(joint: GraphModule) -> Iterator[Callable[[GraphModule], None]]:
    """While this lasts, ops that might draw, and do not, are others to torch's partitioner.

    It would save the generator's state for them: for attention that drops nothing, which may be split. What
    this gives brings the ops back to a part of the graph.
    """
    known: dict[Any, Any] = {}

    def bring_back(part: GraphModule) -> None:
        for node in part.graph.nodes:
            node.target = known.get(node.target, node.target)
        part.recompile()

    for node in joint.graph.nodes:
        if has_random_tag(node.target) and not is_random(node):
            stand_in = _stand_in(node.target)
            known[stand_in], node.target = node.target, stand_in
    yield bring_back
    bring_back(joint)


def _stand_in(op: Any) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return op(*args, **kwargs)

    return call


def is_recomputed(node: Node) -> bool:
    """Whether a checkpoint has a node computed again in the backward pass."""
    return node.meta.get("recompute") in _RECOMPUTED


def with_items(node: Node) -> Iterator[Node]:
    """A node and what is taken out of its result, if that is several."""
    yield node
    for user in node.users:
        if is_getitem(user):
            yield from with_items(user)


def stays(module: torch.nn.Module) -> set[object]:
    """What one of Dynamo's graphs calls that may draw, or do anything, though nothing uses the result."""
    targets = {node.target for node in _all_nodes(module) if node.op == "call_function"}
    opaque = {op for target in targets if (op := overload_of(target)) is not None and is_opaque(op)}
    return opaque | {target for target in targets if calls_in_order(target)}


def _all_nodes(module: torch.nn.Module) -> Iterator[Node]:
    for inner in module.modules():
        if isinstance(inner, GraphModule):
            yield from inner.graph.nodes


def check_draws(graph: Graph) -> None:
    """Refuse what draws where tpfx cannot make the ranks draw as the unsharded model does.

    Raises:
        TpfxError: a graph draws that an op calls in a way of its own, over batches say.
    """
    for node in graph.nodes:
        drawing = next(inner_draws(node), None)
        if drawing is not None and not calls_in_order(node.target):
            raise TpfxError(
                f"{_where(node)} draws random numbers inside of {_name(node)}, by {drawing.target}, and the "
                "devices cannot draw there as one does: draw outside of it, and hand the numbers in"
            )


def check_preserved(module: torch.nn.Module, joint: Graph) -> None:
    """Refuse a checkpoint that draws other numbers in the backward pass than in the forward pass.

    Raises:
        TpfxError: one of Dynamo's graphs has one with `preserve_rng_state=False`, and something draws in one.
    """
    checkpoints = (node for node in _all_nodes(module) if _draws_anew(node))
    found = next(checkpoints, None)
    drawing = (node for node in joint.nodes if "ac_graph_id" in node.meta)
    node = next((one for one in drawing if may_draw(one) or may_draw_inside(one)), None)
    if found is not None and node is not None:
        raise TpfxError(
            f"{_where(node)} draws random numbers by {node.target} in a checkpoint with "
            "preserve_rng_state=False, which draws others in the backward pass; leave that argument out, and "
            "both are the same"
        )


def _draws_anew(node: Node) -> bool:
    name = node.target.name() if isinstance(node.target, HigherOrderOperator) else ""
    return name == "tag_activation_checkpoint" and node.kwargs.get("preserve_rng_state") is False


def _where(node: Node) -> str:
    return " at ".join(filter(None, (module_path(node) or "the model", source_line(node))))


def _name(node: Node) -> str:
    return node.target.name() if isinstance(node.target, HigherOrderOperator) else str(node.target)
