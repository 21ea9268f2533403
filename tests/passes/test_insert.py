"""insert: each conversion, text in and text out; `input -> 0` and the like say what is chosen."""

from __future__ import annotations

import pytest

from tests.support.graphs import after, chosen, lines, parts

CASES = {
    "a partial sum that is needed whole is reduced": """
        x: f32[3, 64]                 # input -> *
        w: f32[32, 64] = parameter    # input -> 1
        y = linear(x, w)              # split 1 1 -> +
        z = cos(y)                    # whole * -> *
        return z
        ---
        x.shard f32[3, 64/2] = shard(x)
        linear f32[3, 32]+ = linear(x.shard, w) # row, split k
        linear.sum f32[3, 32] = all_reduce(linear) # 384 B
        cos f32[3, 32] = cos(linear.sum)
        return cos
    """,
    "a shard that is needed whole is gathered": """
        x: f32[3, 64]                 # input -> *
        w: f32[32, 64] = parameter    # input -> 0
        y = linear(x, w)              # split * 0 -> 0
        z = cos(y)                    # whole * -> *
        return z
        ---
        linear f32[3, 32/2] = linear(x, w) # column, split n
        linear.whole f32[3, 32] = all_gather(linear) # 384 B
        cos f32[3, 32] = cos(linear.whole)
        return cos
    """,
    "of a whole value every rank takes its shard": """
        x: f32[3, 64]                 # input -> *
        w: f32[64, 64] = parameter    # input -> 1
        y = cos(x)                    # whole * -> *
        z = linear(y, w)              # split 1 1 -> +
        return z
        ---
        cos f32[3, 64] = cos(x)
        cos.shard f32[3, 64/2] = shard(cos)
        linear f32[3, 64]+ = linear(cos.shard, w) # row, split k
        linear.sum f32[3, 64] = all_reduce(linear) # 768 B
        return linear.sum
    """,
    "a whole value is added to a partial sum on one rank": """
        x: f32[3, 64]                 # input -> *
        r: f32[3, 32]                 # input -> *
        w: f32[32, 64] = parameter    # input -> 1
        y = linear(x, w)              # split 1 1 -> +
        z = add(y, r)                 # pending + + -> +
        return z
        ---
        r.partial f32[3, 32]+ = to_partial(r)
        x.shard f32[3, 64/2] = shard(x)
        linear f32[3, 32]+ = linear(x.shard, w) # row, split k
        add f32[3, 32]+ = add(linear, r.partial) # partial sum
        add.sum f32[3, 32] = all_reduce(add) # 384 B
        return add.sum
    """,
    "a shard becomes another by way of the whole": """
        x: f32[3, 64]                 # input -> *
        w: f32[32, 64] = parameter    # input -> 0
        v: f32[3, 32] = parameter     # input -> 2
        y = linear(x, w)              # split * 0 -> 0
        z = mul(y, v)                 # split 2 2 -> 2
        return z
        ---
        linear f32[3, 32/2] = linear(x, w) # column, split n
        linear.whole f32[3, 32] = all_gather(linear) # 384 B
        linear.whole.shard f32[3/2, 32] = shard(linear.whole)
        mul f32[3/2, 32] = mul(linear.whole.shard, v) # split c, 2+1
        return mul # gathered for the caller, 384 B
    """,
    "a partial sum becomes a shard by way of the whole": """
        x: f32[3, 64]                 # input -> *
        w: f32[32, 64] = parameter    # input -> 1
        y = linear(x, w)              # split 1 1 -> +
        z = cos(y)                    # split 0 -> 0
        return z
        ---
        x.shard f32[3, 64/2] = shard(x)
        linear f32[3, 32]+ = linear(x.shard, w) # row, split k
        linear.sum f32[3, 32] = all_reduce(linear) # 384 B
        linear.sum.shard f32[3, 32/2] = shard(linear.sum)
        cos f32[3, 32/2] = cos(linear.sum.shard) # split a
        return cos # gathered for the caller, 384 B
    """,
    "users share a conversion": """
        x: f32[3, 64]                 # input -> *
        w: f32[32, 64] = parameter    # input -> 1
        y = linear(x, w)              # split 1 1 -> +
        a = cos(y)                    # whole * -> *
        b = sin(y)                    # whole * -> *
        c = add(y, y)                 # pending + + -> +
        return a, b, c
        ---
        x.shard f32[3, 64/2] = shard(x)
        linear f32[3, 32]+ = linear(x.shard, w) # row, split k
        linear.sum f32[3, 32] = all_reduce(linear) # 384 B
        cos f32[3, 32] = cos(linear.sum)
        sin f32[3, 32] = sin(linear.sum)
        add f32[3, 32]+ = add(linear, linear) # partial sum
        add.sum f32[3, 32] = all_reduce(add) # 384 B
        return cos, sin, add.sum
    """,
    "a value that is taken twice is converted once": """
        x: f32[3, 64]                 # input -> *
        w: f32[32, 64] = parameter    # input -> 0
        y = linear(x, w)              # split * 0 -> 0
        z = mul(y, y)                 # whole * * -> *
        return z
        ---
        linear f32[3, 32/2] = linear(x, w) # column, split n
        linear.whole f32[3, 32] = all_gather(linear) # 384 B
        mul f32[3, 32] = mul(linear.whole, linear.whole)
        return mul
    """,
    "operands in a list": """
        x: f32[3, 64]                 # input -> *
        w: f32[32, 64] = parameter    # input -> 0
        y = linear(x, w)              # split * 0 -> 0
        z = cat([y, x, y], 1)         # whole * * * -> *
        return z
        ---
        linear f32[3, 32/2] = linear(x, w) # column, split n
        linear.whole f32[3, 32] = all_gather(linear) # 384 B
        cat f32[3, 128] = cat([linear.whole, x, linear.whole], 1)
        return cat
    """,
    "a result in shards is gathered for the caller, unless the graph uses it": """
        x: f32[3, 64]                 # input -> *
        w: f32[32, 64] = parameter    # input -> 0
        y = linear(x, w)              # split * 0 -> 0
        z = cos(y)                    # split 0 -> 0
        return y, z
        ---
        linear f32[3, 32/2] = linear(x, w) # column, split n
        cos f32[3, 32/2] = cos(linear) # split a
        return linear, cos # gathered for the caller, 384 B
    """,
}


@pytest.mark.parametrize("name", CASES)
def test_conversion(name: str) -> None:
    before, expected = parts(CASES[name])
    assert lines(after("insert", chosen(before))) == expected
