"""infer_axes: what dimensions are made of, text in and text out."""

from __future__ import annotations

import pytest

from tests.support.graphs import after, dims, parts, read

CASES = {
    "a product, and the axis that vanishes": """
        x: f32[3, 4]
        w: f32[5, 4] = parameter
        return linear(x, w)
        ---
        x: a:3, b:4
        w: c:5, b:4
        linear: a:3, c:5
    """,
    "a view that takes heads apart gives the weight heads": """
        x: f32[2, 8]
        w: f32[12, 8] = parameter
        return transpose.int(reshape(linear(x, w), [2, 3, 4]), 1, 2)
        ---
        x: a:2, b:8
        w: (c:3 d:4), b:8
        linear: a:2, (c:3 d:4)
        reshape: a:2, c:3, d:4
        transpose: a:2, d:4, c:3
    """,
    "a packed weight of q, k and v": """
        x: f32[2, 8]
        w: f32[24, 8] = parameter
        q = split(linear(x, w), 8, 1)
        return mul(mul(q[0], q[1]), q[2])
        ---
        x: a:2, b:8
        w: [c:8|c:8|c:8], b:8
        linear: a:2, [c:8|c:8|c:8]
        split[0]: a:2, c:8
        split[1]: a:2, c:8
        mul: a:2, c:8
        split[2]: a:2, c:8
        mul_1: a:2, c:8
    """,
    "an op without a rule keeps nothing": """
        x: f32[3, 3]
        return linalg_det(mul(x, 2.0))
        ---
        x: a:3, b:3
        mul: a:3, b:3
        linalg_det: 
    """,
    "sizes that do not fit each other stay apart": """
        x: f32[2, 6]
        y = reshape(x, [3, 4])
        return mul(y, y)
        ---
        x: a:2, b:6
        reshape: c:3, d:4
        mul: c:3, d:4
    """,
    "a broadcast": """
        x: f32[2, 6]
        b: f32[6] = parameter
        c: f32[1] = parameter
        return mul(add(x, b), c)
        ---
        x: a:2, b:6
        b: b:6
        c: 1
        add: a:2, b:6
        mul: a:2, b:6
    """,
    "a residual around one product: the sides of the weight stay apart": """
        x: f32[2, 6]
        w: f32[6, 6] = parameter
        return add(x, relu(linear(x, w)))
        ---
        x: a:2, b:6
        w: c:6, b:6
        linear: a:2, c:6
        relu: a:2, c:6
        alias: a:2, c:6
        add: a:2, c:6
    """,
    "a recurrence: what the weight is multiplied with is another dimension than what comes out": """
        x: f32[2, 6]
        w: f32[6, 6] = parameter
        y = linear(x, w)
        return linear(y, w)
        ---
        x: a:2, b:6
        w: c:6, b:6
        linear: a:2, c:6
        alias: a:2, b:6
        linear_1: a:2, c:6
    """,
    "a weight and itself, turned": """
        x: f32[2, 6]
        w: f32[6, 6] = parameter
        return linear(x, add(w, transpose.int(w, 0, 1)))
        ---
        x: a:2, b:6
        w: b:6, b:6
        transpose: b:6, b:6
        add: b:6, b:6
        linear: a:2, b:6
    """,
}


@pytest.mark.parametrize("name", CASES)
def test_inference(name: str) -> None:
    before, expected = parts(CASES[name])
    assert dims(after("infer_axes", read(before))) == expected
