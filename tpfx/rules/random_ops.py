"""What draws random numbers, or may: ops, ops of which nothing is known, and graphs that ops call.

native_dropout(x, 0.5, True)              draws: the first rank does, and the others are told
my::noise(x)                              may draw, or count, or print: nothing is known of it
cond(p, true_graph, false_graph, [x])     calls graphs, in which nodes draw as they do outside
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..ir.nodes import arguments
from ..torch_internals.fx import HigherOrderOperator, OpOverload
from .table import rule_for

# Ops of torch itself, which draw only where their tags say so.
_OF_TORCH = frozenset(
    (
        "aten",
        "prim",
        "prims",
        "_c10d_functional",
        "flex_lib",
        "mkldnn",
        "onednn",
        "quantized",
        "quantized_decomposed",
    )
)
# Those that call an op, which is among their first arguments.
_CALL_AN_OP = frozenset(
    ("auto_functionalized", "auto_functionalized_v2", "run_and_save_rng_state", "run_with_rng_state")
)
# Those that call their graphs as they are: once, once a step, or once a row, one after the other.
_CALL_IN_ORDER = frozenset(
    (
        "cond",
        "while_loop",
        "while_loop_stack_output",
        "scan",
        "map_impl",
        "invoke_subgraph",
        "hints_wrapper",
        "strict_mode",
        "wrap",
        "wrap_with_autocast",
        "wrap_with_set_grad_enabled",
    )
)


def is_random(node: Node) -> bool:
    """Whether a call is of an op that is known to draw: attention does so only where it drops something."""
    return has_random_tag(node.target) and bool(arguments(node).get("dropout_p", 1.0) != 0.0)


def has_random_tag(target: Any) -> bool:
    """Whether an op says of itself that it draws, whatever it is called with."""
    return isinstance(target, OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def is_of_torch(target: OpOverload) -> bool:
    """Whether an op is torch's own, which does what it says and nothing else."""
    return target.namespace in _OF_TORCH


def is_opaque(target: Any) -> bool:
    """Whether nothing is known of an op: it is none of torch, and has no rule to say what it does."""
    return isinstance(target, OpOverload) and not is_of_torch(target) and rule_for(target) is None


def may_draw(node: Node) -> bool:
    """Whether a call draws random numbers itself, or may."""
    if isinstance(node.target, HigherOrderOperator) and node.target.name() in _CALL_AN_OP:
        called = next(arg for arg in node.args if isinstance(arg, OpOverload))
        return has_random_tag(called) or is_opaque(called)
    return is_random(node) or is_opaque(node.target)


def graphs_of(node: Node) -> Iterator[GraphModule]:
    """The graphs that a call takes, which its op calls."""
    root = node.graph.owning_module
    if not isinstance(node.target, HigherOrderOperator) or root is None:
        return
    for operand in node.all_input_nodes:
        value = getattr(root, str(operand.target), None) if operand.op == "get_attr" else None
        if isinstance(value, GraphModule):
            yield value


def inner_draws(node: Node) -> Iterator[Node]:
    """The calls that draw in the graphs that a call takes, and in the graphs that these call."""
    for module in graphs_of(node):
        for inner in module.graph.nodes:
            if may_draw(inner):
                yield inner
            yield from inner_draws(inner)


def may_draw_inside(node: Node) -> bool:
    """Whether something draws in the graphs that a call takes."""
    return any(True for _ in inner_draws(node))


def calls_in_order(target: Any) -> bool:
    """Whether a higher-order op calls its graphs as they are, so that every rank does so in step."""
    return isinstance(target, HigherOrderOperator) and target.name() in _CALL_IN_ORDER
