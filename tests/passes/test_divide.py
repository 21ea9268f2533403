"""divide: how many units each rank has, text in and text out; `input -> 0` says what is chosen."""

from __future__ import annotations

import pytest

from tests.support.graphs import chosen, lines, parts

CASES = {
    "remainders go to the ranks with the least": """
        x: f32[3, 64]                 # input -> *
        w: f32[5, 64] = parameter     # input -> 0
        v: f32[7, 64] = parameter     # input -> 2
        y = linear(x, w)              # split * 0 -> 0
        z = linear(x, v)              # split * 2 -> 2
        return y, z
        ranks: 2
        ---
        x f32[3, 64]
        w f32[5/2, 64] # a:5, b:64, 3+2
        v f32[7/2, 64] # c:7, b:64, 3+4
        linear f32[3, 5/2] = linear(x, w) # column, split n, 3+2
        linear_1 f32[3, 7/2] = linear(x, v) # column, split n, 3+4
        return linear, linear_1
    """,
    "more ranks than units": """
        x: f32[3, 64]                 # input -> *
        w: f32[3, 64] = parameter     # input -> 0
        y = linear(x, w)              # split * 0 -> 0
        return y
        ranks: 4
        ---
        x f32[3, 64]
        w f32[3/4, 64] # a:3, b:64, 1+1+1+0
        linear f32[3, 3/4] = linear(x, w) # column, split n, 1+1+1+0
        return linear
    """,
    "groups of ranks share an outer unit": """
        x: f32[3, 64]                 # input -> *
        w: f32[8, 64] = parameter     # input -> 2
        y = linear(x, w)              # split * 2 -> 2
        z = reshape(y, [3, 2, 4])     # split 2 -> 2
        return z
        ranks: 4
        ---
        x f32[3, 64]
        w f32[8/4, 64] # (a:2 b:4), c:64
        linear f32[3, 8/4] = linear(x, w) # column, split n
        reshape f32[3, 2/2, 4/2] = reshape(linear)
        return reshape
    """,
    "groups of ranks are not alike": """
        x: f32[3, 64]                 # input -> *
        w: f32[8, 64] = parameter     # input -> 2
        y = linear(x, w)              # split * 2 -> 2
        z = reshape(y, [3, 2, 4])     # split 2 -> 2
        return z
        ranks: 3
        ---
        x f32[3, 64]
        w f32[8/3, 64] # (a:2 b:4), c:64, 2+2+4
        linear f32[3, 8/3] = linear(x, w) # column, split n, 2+2+4
        reshape f32[3, 2/2, 4/3] = reshape(linear)
        return reshape
    """,
}


@pytest.mark.parametrize("name", CASES)
def test_division(name: str) -> None:
    before, expected = parts(CASES[name])
    graph, _, ranks = before.partition("\nranks: ")
    assert lines(chosen(graph, int(ranks)), inputs=True) == expected
