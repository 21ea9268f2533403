"""The table of ops: one row an op, and what the rows name exists."""

from __future__ import annotations

import ast
import inspect
from collections import Counter

import pytest
import torch

from tpfx.rules import images, pointwise, table
from tpfx.rules.rule import Lowering, Rule, parse

aten = torch.ops.aten


def test_an_op_has_one_row() -> None:
    """A dict keeps the last of two rows without a word."""
    trees = [ast.parse(inspect.getsource(module)) for module in (table, images)]
    written = [
        ast.unparse(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    ]
    ops = Counter(name for name in written if name.startswith("aten.") and name.count(".") == 2)
    assert not {name: count for name, count in ops.items() if count > 1}
    assert set(ops) == {str(op) for op in table.TABLE if isinstance(op, torch._ops.OpOverload)}


def test_every_lowering_is_named_by_a_row() -> None:
    rows = [*table.TABLE.values(), *table._EXTERNAL.values()]
    assert {rule.lower for rule in rows} - {None} == set(Lowering)


def test_texts_can_be_read() -> None:
    texts = [rule.pattern for rule in table.TABLE.values() if isinstance(rule.pattern, str)]
    assert len(texts) > 20
    for text in texts:
        assert parse(text).results


def test_arguments_that_give_a_shape_exist() -> None:
    """A row that names an argument is of an op that has it."""
    shaped = {op: rule.shape for op, rule in table.TABLE.items() if rule.shape is not None}
    assert len(shaped) > 10
    for op, name in shaped.items():
        assert name in [argument.name for argument in op._schema.arguments], op


@pytest.mark.parametrize(
    ("op", "rule"),
    [
        (aten.mm.default, Rule("m k, k n -> m n", ((0,), (1,)))),
        (aten.exp.default, Rule(pointwise.pointwise)),  # by its tag
        (aten.exp_.default, None),  # it writes into its operand
        (aten.linalg_cross.default, None),
        (
            "transformers.grouped_mm_fallback.default",
            table._EXTERNAL["transformers.grouped_mm_fallback.default"],
        ),
        (len, None),
    ],
)
def test_rule_for(op: object, rule: Rule | None) -> None:
    assert table.rule_for(op) == rule


def test_a_family_shares_a_rule() -> None:
    rule = Rule("m -> m")
    assert table.family(rule, aten.sin.default, aten.cos.default) == {
        aten.sin.default: rule,
        aten.cos.default: rule,
    }
