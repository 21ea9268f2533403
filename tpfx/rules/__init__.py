"""What each op does with dimensions: rules as data, and the table of ops.

>>> rule_for(torch.ops.aten.mm.default)      # the row of the table for an op
>>> rule_of(node)                            # the rule that was bound to a call
>>> may_draw(node)                           # whether a call draws random numbers, or may
"""

from .bind import rule_of
from .random_ops import inner_draws, is_of_torch, is_random, may_draw, may_draw_inside
from .rule import Rule
from .table import rule_for

__all__ = [
    "Rule",
    "inner_draws",
    "is_of_torch",
    "is_random",
    "may_draw",
    "may_draw_inside",
    "rule_for",
    "rule_of",
]
