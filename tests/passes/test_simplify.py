"""simplify: each op that does nothing, repetitions, and what stays."""

from __future__ import annotations

import pytest
import torch

from tests.support.graphs import after, lines, parts, read
from tpfx.ir.annotations import set_gradients
from tpfx.passes.simplify import simplify

CASES = {
    "a slice of all": """
        x: f32[4, 8]
        y = slice(x, 1, 0, 8)
        return cos(y)
        ---
        cos f32[4, 8] = cos(x)
        return cos
    """,
    "a slice of a part, or in steps, stays": """
        x: f32[4, 1]
        y = slice(x, 0, 0, 2)
        z = slice(x, 1, 0, 1, 2)
        return cos(y), cos(z)
        ---
        slice f32[2, 1] = slice(x, 0, 0, 2)
        slice_1 f32[4, 1] = slice(x, 1, 0, 1, 2)
        cos f32[2, 1] = cos(slice)
        cos_1 f32[4, 1] = cos(slice_1)
        return cos, cos_1
    """,
    "scalars that are neutral": """
        x: f32[4, 8]
        y = add(sub(div(mul(x, 1.0), 1), 0), 0.0)
        return cos(y)
        ---
        cos f32[4, 8] = cos(x)
        return cos
    """,
    "scalars that are not": """
        x: f32[4, 8]
        y = add(sub(div(mul(x, 0), 2), 1), 1.5)
        return cos(y)
        ---
        mul f32[4, 8] = mul(x, 0)
        div f32[4, 8] = div(mul, 2)
        sub f32[4, 8] = sub(div, 1)
        add f32[4, 8] = add(sub, 1.5)
        cos f32[4, 8] = cos(add)
        return cos
    """,
    "a neutral scalar that changes the dtype stays": """
        x: i64[4, 8]
        y = mul(x, 1.0)
        return cos(y)
        ---
        mul f32[4, 8] = mul(x, 1.0)
        cos f32[4, 8] = cos(mul)
        return cos
    """,
    "a neutral tensor stays": """
        x: f32[4, 8]
        y = mul(x, constant([1.0]))
        return cos(y)
        ---
        constant f32[1] = constant
        mul f32[4, 8] = mul(x, constant)
        cos f32[4, 8] = cos(mul)
        return cos
    """,
    "an expand or a reshape to the same sizes": """
        x: f32[4, 8]
        y = expand(reshape(x, [4, 8]), [4, 8])
        return cos(y)
        ---
        cos f32[4, 8] = cos(x)
        return cos
    """,
    "an expand or a reshape to other sizes stays": """
        x: f32[4, 1]
        y = reshape(expand(x, [4, 8]), [8, 4])
        return cos(y)
        ---
        expand f32[4, 8] = expand(x)
        reshape f32[8, 4] = reshape(expand)
        cos f32[8, 4] = cos(reshape)
        return cos
    """,
    "a conversion to the same dtype": """
        x: f32[4, 8]
        y = _to_copy(x, dtype=torch.float32)
        return cos(y)
        ---
        cos f32[4, 8] = cos(x)
        return cos
    """,
    "a conversion to another dtype stays": """
        x: f32[4, 8]
        y = _to_copy(x, dtype=torch.float64)
        return cos(y)
        ---
        to_copy f64[4, 8] = to_copy(x, dtype=f64)
        cos f64[4, 8] = cos(to_copy)
        return cos
    """,
    "an alias, and what is detached": """
        x: f32[4, 8]
        y = detach(alias(x))
        return cos(y)
        ---
        cos f32[4, 8] = cos(x)
        return cos
    """,
    "what was computed before": """
        x: f32[4, 8]
        y = unsqueeze(cos(x), 0)
        z = unsqueeze(cos(x), 0)
        return add(y, z)
        ---
        cos f32[4, 8] = cos(x)
        unsqueeze f32[1, 4, 8] = unsqueeze(cos, 0)
        add f32[1, 4, 8] = add(unsqueeze, unsqueeze)
        return add
    """,
    "what has other arguments, be they equal, stays": """
        x: i64[4, 8]
        y = add(x, 1)
        z = add(x, 1.0)
        return mul(y, z)
        ---
        add i64[4, 8] = add(x, 1)
        add_1 f32[4, 8] = add(x, 1.0)
        mul f32[4, 8] = mul(add, add_1)
        return mul
    """,
    "what has a keyword more stays": """
        x: f32[4, 8]
        y = sum.dim_IntList(x, [1])
        z = sum.dim_IntList(x, [1], dtype=torch.float32)
        return mul(y, z)
        ---
        sum f32[4] = sum(x, [1])
        sum_1 f32[4] = sum(x, [1], dtype=f32)
        mul f32[4] = mul(sum, sum_1)
        return mul
    """,
    "results of one op of several": """
        x: f32[4, 8]
        y = split(x, 4, 1)
        z = split(x, 4, 1)
        return add(y[0], z[1])
        ---
        split 2 results = split(x, 4, 1)
        split[0] f32[4, 4] = split[0]
        split[1] f32[4, 4] = split[1]
        add f32[4, 4] = add(split[0], split[1])
        return add
    """,
    "random numbers are drawn as often as before": """
        x: f32[4, 8]
        y = rand_like(x)
        z = rand_like(x)
        return add(y, z)
        ---
        rand_like f32[4, 8] = rand_like(x)
        rand_like_1 f32[4, 8] = rand_like(x)
        add f32[4, 8] = add(rand_like, rand_like_1)
        return add
    """,
    "what is returned stays a tensor of its own": """
        x: f32[4, 8]
        y = cos(x)
        z = cos(x)
        u = mul(y, 1.0)
        return y, z, u
        ---
        cos f32[4, 8] = cos(x)
        cos_1 f32[4, 8] = cos(x)
        mul f32[4, 8] = mul(cos, 1.0)
        return cos, cos_1, mul
    """,
    "what is written stays": """
        x: f32[4, 8] = buffer
        y = cos(x)
        copy_(x, y)
        copy_(x, y)
        return y
        ---
        cos f32[4, 8] = cos(x)
        copy_ f32[4, 8] = copy_(x, cos)
        copy__1 f32[4, 8] = copy_(x, cos)
        return cos
    """,
}


@pytest.mark.parametrize("name", CASES)
def test_rewrite(name: str) -> None:
    before, expected = parts(CASES[name])
    assert lines(after("simplify", read(before))) == expected


def test_a_gradient_that_others_have_too_is_copied() -> None:
    graph = read("""
        a: f32[4] = parameter
        b: f32[4] = parameter
        c: f32[2, 2] = parameter
        tangents_1: f32[4]
        d: f32[4] = parameter
        x = cos(tangents_1)
        return x, x, reshape(x, [2, 2]), tangents_1
    """)
    output, inputs = graph.output_node(), graph.find_nodes(op="placeholder")
    set_gradients(output, {0: inputs[0], 1: inputs[1], 2: inputs[2], 3: inputs[4]})
    simplify(graph)
    made = [node.target for node in output.args[0]]  # type: ignore[union-attr]
    clone = torch.ops.aten.clone.default
    assert made == [torch.ops.aten.cos.default, clone, clone, clone]
