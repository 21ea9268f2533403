"""What the rules of views say, text in and text out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.calls import call, text_of
from tpfx.rules.table import rule_for
from tpfx.rules.views import FULL, bounds

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("op", "operand", "args", "result", "expected"),
    [
        (aten.view.default, "m:2 n:12", ([2, 3, 4],), (2, 3, 4), "a:2 (b:3 c:4) -> a:2 b:3 c:4"),
        (aten.reshape.default, "m:2 (h:3 d:4)", ([6, 4],), (6, 4), "a:2 (b:3 c:4) -> (a:2 b:3) c:4"),
        (aten.reshape.default, "m:2 n:3", ([3, 2],), (3, 2), "a:2 b:3 -> c:3 d:2; whole (a:2 b:3) (c:3 d:2)"),
        (aten.view.dtype, "m:2 n:3", (torch.uint8,), (2, 12), "a:2 b:3 -> a:2 (b:3 c:4); whole c:4"),
        (aten.t.default, "m:2 n:3", (), (3, 2), "a:2 b:3 -> b:3 a:2"),
        (aten.permute.default, "m:2 n:3 p:4", ([2, 0, 1],), (4, 2, 3), "a:2 b:3 c:4 -> c:4 a:2 b:3"),
        (aten.unsqueeze.default, "m:2 n:3", (-1,), (2, 3, 1), "a:2 b:3 -> a:2 b:3 1"),
        (aten.squeeze.dim, "1 n:3", (0,), (3,), "1 a:3 -> a:3"),
        (aten.squeeze.dim, "m:2 n:3", (0,), (2, 3), "a:2 b:3 -> a:2 b:3"),
        (aten.expand.default, "1 n:3", ([4, -1],), (4, 3), "1 a:3 -> b:4 a:3"),
        (aten.slice.Tensor, "m:2 [a:3|b:4]", (1, 0, 3), (2, 3), "a:2 [b:3|c:4] -> a:2 b:3"),
        (aten.slice.Tensor, "(h:3 d:4)", (0, 4, 12), (8,), "([1|a:2] b:4) -> (a:2 b:4)"),
        (aten.slice.Tensor, "m:8", (0, 0, 8, 2), (4,), "a:8 -> b:4; whole a:8 b:4"),
        (aten.select.int, "m:2 [a:3|1]", (1, 3), (2,), "a:2 [b:3|1] -> a:2"),
        (aten.select.int, "m:2 1", (1, 0), (2,), "a:2 1 -> a:2; whole 1"),
        (
            aten.diagonal.default,
            "m:2 n:3 p:3",
            (0, 1, 2),
            (2, 3),
            "a:2 b:3 c:3 -> a:2 d:3; whole b:3 c:3 d:3",
        ),
        (aten.constant_pad_nd.default, "m:2 n:3", ([1, 1],), (2, 5), "a:2 b:3 -> a:2 c:5; whole b:3 d:0 c:5"),
        (aten.repeat.default, "m:2 n:3", ([1, 2],), (2, 6), "a:2 b:3 -> a:2 c:6; whole d:0 c:6 b:3"),
    ],
)
def test_views(op: Any, operand: str, args: tuple[Any, ...], result: tuple[int, ...], expected: str) -> None:
    rule = rule_for(op)
    assert rule is not None
    bound = rule.bind(call(op, operand, args=args, result=result))
    bound.settle()
    assert text_of(bound) == expected


@pytest.mark.parametrize(
    ("start", "stop", "size", "expected"),
    [
        (None, None, 6, (0, 6)),
        (0, FULL, 6, (0, 6)),
        (-2, None, 6, (4, 6)),
        (1, -1, 6, (1, 5)),
        (4, 2, 6, (4, 4)),
        (9, 12, 6, (6, 6)),
        (-9, 2, 6, (0, 2)),
    ],
)
def test_bounds_are_those_of_a_slice(
    start: int | None, stop: int | None, size: int, expected: tuple[int, int]
) -> None:
    assert bounds(start, stop, size) == expected
    assert list(range(size))[start:stop] == list(range(*expected))
