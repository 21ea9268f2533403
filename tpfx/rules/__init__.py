"""What each op does with dimensions: rules as data, and the table of ops.

>>> rule_for(torch.ops.aten.mm.default)      # the row of the table for an op
>>> rule_of(node)                            # the rule that was bound to a call
"""

from .bind import rule_of
from .rule import Rule
from .table import is_random, rule_for

__all__ = ["Rule", "is_random", "rule_for", "rule_of"]
