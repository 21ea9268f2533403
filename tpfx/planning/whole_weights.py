"""Why a weight lies whole on every rank in a planned graph: which op needs it so, or that nothing does.

reason = why_whole(weight, splits)      # Reason("no rule says what my.op does with dimensions", "…", True)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Node

from ..ir.annotations import bound_of, dims_of
from ..ir.layout import Split, splittable
from ..ir.nodes import is_view, tensor_nodes
from ..ir.splits import Splits
from ..rules import is_random, rule_of
from ..torch_internals.fx import HigherOrderOperator
from .choices import options


@dataclass(frozen=True)
class Reason:
    """Why a weight is not divided.

    Attributes:
        text: the reason.
        remedy: what can be done about it.
        forced: whether there was nothing to choose, so that another graph may find better.
        best: whether it is best so, unless it is large.
    """

    text: str
    remedy: str
    forced: bool = False
    best: bool = False


def why_whole(weight: Node, splits: Splits) -> Reason:
    """Why an input of a planned graph was left whole."""
    if not any(splittable(dims_of(weight), split) for split in splits.of([dims_of(weight)])):
        text = "no dimension of it can be divided"
        return Reason(text, "if it matters: a weight of other sizes", best=True)
    op = next(_takes_whole(weight, splits), None)
    if op is None:
        return Reason(
            "it is small: dividing it would cost more than it saves",
            "if it matters: fewer devices, or a plan of your own (plan=…), change what is small",
            best=True,
        )
    if isinstance(op.target, HigherOrderOperator):
        return Reason(
            f"{op.target} hands the whole of it to the code that it calls",
            "a layer outside of that branch or loop is divided",
            forced=True,
        )
    if rule_of(op) is None:
        return Reason(
            f"no rule says what {op.target} does with dimensions",
            "tpfx.register_rule can say it, and it is divided",
            forced=True,
        )
    why = "draws random numbers from it" if is_random(op) else "needs the whole of it"
    return Reason(f"{op.target} {why}", "an op that computes the same otherwise may be divided", forced=True)


def _takes_whole(value: Node, splits: Splits) -> Iterator[Node]:
    """The ops that can take a value, or a view of it, only whole."""
    for user in value.users:
        if user.op == "output":
            continue
        if bound_of(user) is None:  # a collective, or a shard of it
            yield from _takes_whole(user, splits)
        elif not _can_take_shards(user, value, splits):
            yield user
        elif is_view(user):
            yield from _takes_whole(user, splits)


def _can_take_shards(user: Node, value: Node, splits: Splits) -> bool:
    positions = [at for at, operand in enumerate(tensor_nodes(user)) if operand is value]
    return any(
        isinstance(choice.operands[at], Split)
        for choice in options(user, splits, frozenset())
        for at in positions
    )
