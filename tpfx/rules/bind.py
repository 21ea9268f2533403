"""Bind a rule to a call in a graph, and remember which rule it was.

Rules may be registered or replaced at any time; what was planned by one is lowered, counted and shown by the
same one.

>>> bind(node, rule_for(node.target))
>>> rule_of(node).shape      # of the rule that was bound, whatever the table says now
"""

from __future__ import annotations

from torch.fx import Node

from ..ir.annotations import bound_of, dims_of, set_bound
from ..ir.nodes import size_of
from ..ir.op_dims import Bound, Call
from .rule import Rule
from .table import rule_for
from .whole_dims import unsplit

_RULE = "tpfx_rule"


def bind(node: Node, rule: Rule | None) -> Bound:
    """Record what a rule says of a call, and the rule; without one nothing of the call may be split."""
    call = Call(node, dims_of, size_of)
    bound = unsplit(call) if rule is None else rule.bind(call)
    node.meta[_RULE] = rule
    set_bound(node, bound)
    return bound


def rule_of(node: Node) -> Rule | None:
    """The rule that was bound to a call, or the table's for one that is not bound yet; None: it has none."""
    if bound_of(node) is None:
        return rule_for(node.target)
    rule: Rule | None = node.meta[_RULE]
    return rule
