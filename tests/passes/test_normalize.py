"""normalize: each rewrite, text in and text out."""

from __future__ import annotations

import pytest

from tests.support.graphs import after, lines, parts, read

SLIDING = "[1], [1], [1], False, [0], 1"  # the settings of a convolution
CASES = {
    "a bias of a product is a sum of its own": """
        x: f32[3, 4]
        w: f32[5, 4] = parameter
        b: f32[5] = parameter
        y = addmm(b, x, t(w))
        return y
        ---
        linear f32[3, 5] = linear(x, w)
        add f32[3, 5] = add(linear, b)
        return add
    """,
    "a product with a scaled bias stays": """
        x: f32[3, 4]
        w: f32[4, 5] = parameter
        b: f32[5] = parameter
        y = addmm(b, x, w, beta=2)
        return y
        ---
        addmm f32[3, 5] = addmm(b, x, w, beta=2)
        return addmm
    """,
    "a bias is added after the view that undoes the flattening": """
        x: f32[2, 3, 4]
        w: f32[5, 4] = parameter
        b: f32[5] = parameter
        y = view(addmm(b, view(x, [6, 4]), t(w)), [2, 3, 5])
        return y
        ---
        linear f32[2, 3, 5] = linear(x, w)
        add f32[2, 3, 5] = add(linear, b)
        return add
    """,
    "a bias stays before another view": """
        x: f32[2, 3, 4]
        w: f32[5, 4] = parameter
        b: f32[5] = parameter
        y = view(addmm(b, view(x, [6, 4]), t(w)), [2, 15])
        return y
        ---
        reshape f32[6, 4] = reshape(x)
        linear f32[6, 5] = linear(reshape, w)
        add f32[6, 5] = add(linear, b)
        reshape_1 f32[2, 15] = reshape(add)
        return reshape_1
    """,
    "a bias stays where its sum is used twice": """
        x: f32[2, 3, 4]
        w: f32[5, 4] = parameter
        b: f32[5] = parameter
        a = addmm(b, view(x, [6, 4]), t(w))
        y = view(a, [2, 3, 5])
        return y, a
        ---
        reshape f32[6, 4] = reshape(x)
        linear f32[6, 5] = linear(reshape, w)
        add f32[6, 5] = add(linear, b)
        reshape_1 f32[2, 3, 5] = reshape(add)
        return reshape_1, add
    """,
    "a product with a transposed weight, and the views around it, are one linear": """
        x: f32[2, 3, 4]
        w: f32[5, 4] = parameter
        y = _unsafe_view(mm(view(x, [6, 4]), t(w)), [2, 3, 5])
        return y
        ---
        linear f32[2, 3, 5] = linear(x, w)
        return linear
    """,
    "a product that is flattened otherwise is a linear between views": """
        x: f32[2, 12]
        w: f32[5, 4] = parameter
        y = view(mm(view(x, [6, 4]), t(w)), [2, 15])
        return y
        ---
        reshape f32[6, 4] = reshape(x)
        linear f32[6, 5] = linear(reshape, w)
        reshape_1 f32[2, 15] = reshape(linear)
        return reshape_1
    """,
    "a product with a weight as it lies stays": """
        x: f32[3, 4]
        w: f32[4, 5] = parameter
        y = mm(x, w)
        return y
        ---
        mm f32[3, 5] = mm(x, w)
        return mm
    """,
    "a product sees through an alias": """
        x: f32[3, 4]
        w: f32[5, 4] = parameter
        y = mm(x, alias(t(w)))
        return y
        ---
        linear f32[3, 5] = linear(x, w)
        return linear
    """,
    "the bias of a convolution is a sum of its own": """
        x: f32[2, 3, 8, 8]
        w: f32[6, 3, 3, 3] = parameter
        b: f32[6] = parameter
        y = convolution(x, w, b, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        return y
        ---
        reshape f32[6, 1, 1] = reshape(b)
        convolution f32[2, 6, 8, 8] = convolution(x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        add f32[2, 6, 8, 8] = add(convolution, reshape)
        return add
    """,
    "a convolution without a bias stays": """
        x: f32[2, 3, 8]
        w: f32[6, 3, 3] = parameter
        y = convolution(x, w, None, SLIDING)
        return y
        ---
        convolution f32[2, 6, 8] = convolution(x, w, None, SLIDING)
        return convolution
    """,
    "the gradient of a convolution's bias is a sum of its own": """
        g: f32[2, 6, 8]
        x: f32[2, 3, 8]
        w: f32[6, 3, 3] = parameter
        all = convolution_backward(g, x, w, [6], SLIDING, [True, True, True])
        return all[0], all[1], all[2]
        ---
        sum f32[6] = sum(g, [0, 2])
        convolution_backward 3 results = convolution_backward(g, x, w, None, SLIDING, [True, True, False])
        convolution_backward[0] f32[2, 3, 8] = convolution_backward[0]
        convolution_backward[1] f32[6, 3, 3] = convolution_backward[1]
        return convolution_backward[0], convolution_backward[1], sum
    """,
    "a convolution's gradients without that of a bias stay": """
        g: f32[2, 6, 8]
        x: f32[2, 3, 8]
        w: f32[6, 3, 3] = parameter
        all = convolution_backward(g, x, w, [0], SLIDING, [False, True, False])
        return all[1]
        ---
        convolution_backward 3 results = convolution_backward(g, x, w, [0], SLIDING, [False, True, False])
        convolution_backward[1] f32[6, 3, 3] = convolution_backward[1]
        return convolution_backward[1]
    """,
    "an empty operand of a cat goes": """
        x: f32[2, 3]
        y: f32[2, 1]
        e: f32[0]
        z = cat([e, x, y], 1)
        return z
        ---
        cat f32[2, 4] = cat([x, y], 1)
        return cat
    """,
    "a cat of one operand is a copy": """
        x: f32[2, 3]
        e: f32[0]
        z = cat([e, x], 1)
        return z
        ---
        clone f32[2, 3] = clone(x)
        return clone
    """,
    "an empty operand that gives the dtype stays": """
        x: f32[2, 3]
        e: f64[0]
        z = cat([e, x], 1)
        return z
        ---
        cat f64[2, 3] = cat([e, x], 1)
        return cat
    """,
    "what is copied is the copy, of the dtype of what it is copied into": """
        x: f32[2, 3]
        y: f64[2, 3]
        z = copy(x, y)
        return z
        ---
        to_copy f32[2, 3] = to_copy(y, dtype=f32)
        return to_copy
    """,
    "a copy of the same dtype is one": """
        x: f32[2, 3]
        y: f32[2, 3]
        z = copy(x, y)
        return z
        ---
        clone f32[2, 3] = clone(y)
        return clone
    """,
    "a copy that is repeated stays": """
        x: f32[2, 3]
        y: f32[3]
        z = copy(x, y)
        return z
        ---
        copy f32[2, 3] = copy(x, y)
        return copy
    """,
    "writes that cover a dimension are a cat": """
        x: f32[2, 6]
        a: f32[2, 4]
        b: f32[2, 2]
        y = slice_scatter(x, b, 1, 0, 2)
        z = slice_scatter(slice_scatter(y, b, -1, -2), a, 1, 0, 4)
        return z
        ---
        cat f32[2, 6] = cat([a, b], 1)
        return cat
    """,
    "writes in turns that cover a dimension are a stack": """
        x: f32[2, 6]
        a: f32[2, 3]
        b: f32[2, 3]
        z = slice_scatter(slice_scatter(x, a, 1, 0, 9, 2), b, 1, 1, 9, 2)
        return z
        ---
        stack f32[2, 3, 2] = stack([a, b], 2)
        reshape f32[2, 6] = reshape(stack)
        return reshape
    """,
    "writes that leave some, overlap, or are along several dimensions, stay": """
        x: f32[4, 4]
        a: f32[4, 2]
        b: f32[2, 4]
        c: f32[4, 3]
        y = slice_scatter(slice_scatter(x, a, 1, 0, 2), b, 0, 0, 2)
        z = slice_scatter(slice_scatter(x, c, 1, 0, 3), a, 1, 2, 4)
        return y, z
        ---
        slice_scatter f32[4, 4] = slice_scatter(x, a, 1, 0, 2)
        slice_scatter_1 f32[4, 4] = slice_scatter(slice_scatter, b, 0, 0, 2)
        slice_scatter_2 f32[4, 4] = slice_scatter(x, c, 1, 0, 3)
        slice_scatter_3 f32[4, 4] = slice_scatter(slice_scatter_2, a, 1, 2, 4)
        return slice_scatter_1, slice_scatter_3
    """,
    "one constant index is a slice": """
        x: f32[2, 8, 3]
        y = index(x, [None, constant([2])])
        z = index(x, [None, alias(lift_fresh_copy(constant([-1])))])
        return y, z
        ---
        slice f32[2, 1, 3] = slice(x, 1, 2, 3)
        slice_1 f32[2, 1, 3] = slice(x, 1, -1, end)
        return slice, slice_1
    """,
    "several indices, or such that are not known, stay": """
        x: f32[2, 8, 3]
        i: i64[1]
        y = index(x, [None, constant([2, 3])])
        z = index(x, [None, i])
        return y, z
        ---
        constant i64[2] = constant
        index f32[2, 2, 3] = index(x, [None, constant])
        index_1 f32[2, 1, 3] = index(x, [None, i])
        return index, index_1
    """,
    "a view to the same sizes goes, any other is a reshape": """
        x: f32[2, 6]
        y = cos(view(x, [2, 6]))
        z = view(y, [3, 4])
        return z
        ---
        cos f32[2, 6] = cos(x)
        reshape f32[3, 4] = reshape(cos)
        return reshape
    """,
    "an alias of a value goes, one of an input stays": """
        x: f32[2, 6]
        y = alias(cos(x))
        z = alias(x)
        return y, z
        ---
        cos f32[2, 6] = cos(x)
        alias f32[2, 6] = alias(x)
        return cos, alias
    """,
    "what nothing uses goes": """
        x: f32[2, 6]
        sin(x)
        y = cos(x)
        return y
        ---
        cos f32[2, 6] = cos(x)
        return cos
    """,
}


@pytest.mark.parametrize("name", CASES)
def test_rewrite(name: str) -> None:
    before, expected = parts(CASES[name].replace("SLIDING", SLIDING))
    assert lines(after("normalize", read(before))) == expected
