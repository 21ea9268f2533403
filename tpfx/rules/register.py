"""Rules for ops that tpfx does not know: `register_rule`, for the custom ops of users.

@torch.library.custom_op("mine::scale", mutates_args=())
def scale(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor: ...

tpfx.register_rule(scale, "... d, d -> ... d", linear=((0,), (1,)))
tpfx.check_rule(scale, torch.randn(4, 6), torch.randn(6))       # runs every split that the rule allows
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import RuleError
from ..torch_internals.fx import OpOverload, overload_of
from .rule import Pattern, Rule, parse
from .table import TABLE

_BUILT_IN = frozenset(TABLE)


def register_rule(
    op: Any, pattern: str, *, linear: Sequence[Sequence[int]] = (), reduce: str = "sum"
) -> None:
    """Say what an op does with dimensions, so that it may be split.

    Without a rule an op runs whole on every device. With one it is called with each rank's shards, so it must
    compute from the shapes that it is given. Register rules before `compile`; a later one replaces an earlier
    one of the same op. `check_rule` tests a rule by running it.

    Args:
        op: an op of `torch.library`: what `custom_op` returns, `torch.ops.mine.scale`, or an overload of it.
        pattern: one group of dimensions for each tensor argument, in order, and one for each result. The same
            letter is the same dimension; one that no result has is contracted: every rank has a partial sum
            of the result. `(g r)` is a product, major first; `!` must be whole on every rank; `...` are any
            leading dimensions.
        linear: sets of tensor arguments, by position, in which the op is linear: partial sums may
            flow through it.
        reduce: how partial sums are joined: "sum", "max" or "min".

    Raises:
        RuleError: the pattern cannot be read or does not fit the op, or tpfx has a rule of its own for it.

    >>> tpfx.register_rule(torch.ops.mine.scale, "... d, d -> ... d")
    """
    target = _overload(op)
    rule = Rule(pattern, tuple(tuple(one) for one in linear), reduce)
    _check(target, _read(target, pattern), rule)
    TABLE[target] = rule


def registered() -> list[str]:
    """The rules that were registered, as text."""
    return sorted(f"{op} {rule}" for op, rule in TABLE.items() if op not in _BUILT_IN)


def _overload(op: Any) -> OpOverload:
    target = overload_of(op)
    if target is None:
        raise RuleError(
            f"a rule needs one overload of an op of torch.library, not {op!r}; "
            "pass, for instance, torch.ops.mine.scale.default"
        )
    if target in _BUILT_IN:
        raise RuleError(f"{target} has a rule already; rules are for ops that tpfx does not know")
    if target._schema.is_mutable:
        raise RuleError(f"{target} writes into its arguments; a rule needs an op that returns what it makes")
    return target


def _read(target: OpOverload, pattern: str) -> Pattern:
    try:
        return parse(pattern)
    except ValueError as problem:
        raise RuleError(f"the rule for {target} cannot be read: {problem}") from problem


def _check(target: OpOverload, pattern: Pattern, rule: Rule) -> None:
    schema = target._schema
    given = sum("Tensor" in str(argument.type) for argument in schema.arguments)
    made = sum("Tensor" in str(result.type) for result in schema.returns)
    for what, count, groups in (("arguments", given, pattern.operands), ("results", made, pattern.results)):
        if len(groups) != count:
            raise RuleError(
                f"{target} has {count} tensor {what}, but {rule.pattern!r} has {len(groups)} groups for them"
            )
    wrong = [index for one in rule.linear for index in one if not 0 <= index < given]
    if wrong:
        raise RuleError(
            f"linear={rule.linear} names argument {wrong[0]}; {target} has {given} tensor arguments"
        )
    if rule.reduce not in ("sum", "max", "min"):
        raise RuleError(f"reduce={rule.reduce!r}; it is 'sum', 'max' or 'min'")
