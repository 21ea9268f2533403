"""localize: what one rank runs, text in and text out; `input -> 0` and the like say what is chosen."""

from __future__ import annotations

import pytest

from tests.support.graphs import after, calls, chosen, parts
from tpfx.passes.localize import localize

# A graph, what rank 1 of 2 runs, and what rank 0 does where that is another thing.
DENSE = "contiguous_1, contiguous_1, contiguous_1, None, permute_1, contiguous_3, contiguous_4, contiguous_4"

CASES = {
    "column parallel, and results in shards": """
        x: f64[3, 64]                 # input -> *
        w: f64[32, 64] = parameter    # input -> 0
        y = linear(x, w)              # split * 0 -> 0
        return y
        ---
        linear = linear(x, w)
        return linear
    """,
    "row parallel, its sum in place": """
        x: f64[3, 64]                 # input -> *
        w: f64[32, 64] = parameter    # input -> 1
        y = linear(x, w)              # split 1 1 -> +
        return y
        ---
        take = take(x, [[1, [[[0, 32]], [[32, 64]]]]], 1)
        linear = linear(take, w)
        all_reduce_ = all_reduce_(linear, sum, tp)
        wait_tensor = wait_tensor(all_reduce_)
        return wait_tensor
    """,
    "a sum of what is used otherwise is not in place": """
        x: f64[3, 64]                 # input -> *
        w: f64[32, 64] = parameter    # input -> 1
        y = linear(x, w)              # split 1 1 -> +
        z = cos(y)                    # whole * -> *
        u = add(y, y)                 # pending + + -> +
        return z, u
        ---
        take = take(x, [[1, [[[0, 32]], [[32, 64]]]]], 1)
        linear = linear(take, w)
        all_reduce = all_reduce(linear, sum, tp)
        wait_tensor = wait_tensor(all_reduce)
        cos = cos(wait_tensor)
        add = add(linear, linear)
        contiguous = contiguous(add)
        all_reduce_ = all_reduce_(contiguous, sum, tp)
        wait_tensor_1 = wait_tensor(all_reduce_)
        return cos, wait_tensor_1
    """,
    "a lookup in a rank's shard of a vocabulary": """
        i: i64[2, 5]                  # input -> *
        w: f64[33, 8] = parameter     # input -> 0
        y = embedding(w, i)           # split 0 * -> +
        return y
        ---
        embedding_shard = embedding_shard(w, i, [[17, 33]], 33)
        all_reduce_ = all_reduce_(embedding_shard, sum, tp)
        wait_tensor = wait_tensor(all_reduce_)
        return wait_tensor
    """,
    "a lookup of a rank's shard of each row": """
        i: i64[2, 5]                  # input -> *
        w: f64[33, 8] = parameter     # input -> 1
        y = embedding(w, i)           # split 1 * -> 1
        z = cos(y)                    # whole * -> *
        return z
        ---
        embedding = embedding(w, i)
        gather_shards = gather_shards(embedding, [[2, [[[0, 4]], [[4, 8]]]]], [2, 5, 8], 1, 2, tp, [])
        cos = cos(gather_shards)
        return cos
    """,
    "random numbers are drawn once, for all": """
        x: f64[3, 64]                 # input -> *
        w: f64[32, 64] = parameter    # input -> 0
        y = rand_like(x)              # whole * -> *
        z = linear(y, w)              # split * 0 -> 0
        return z
        ---
        broadcast_random = broadcast_random(False, tp, rand_like.default, [x])
        linear = linear(broadcast_random, w)
        return linear
        ---
        broadcast_random = broadcast_random(True, tp, rand_like.default, [x])
        linear = linear(broadcast_random, w)
        return linear
    """,
    "an attention takes each head of keys and values once": """
        q: f32[2, 8, 1, 4]                            # input -> *
        k: f32[2, 2, 2, 4]                            # input -> *
        v: f32[2, 2, 2, 4]                            # input -> *
        a = unsqueeze(k, 2)                           # whole * -> *
        b = expand(a, [2, 2, 4, 2, 4])                # whole * -> *
        c = clone(b)                                  # whole * -> *
        d = reshape(c, [2, 8, 2, 4])                  # whole * -> *
        e = unsqueeze(v, -3)                          # whole * -> *
        f = expand(e, [2, 2, 4, 2, 4])                # whole * -> *
        g = reshape(f, [2, 8, 2, 4])                  # whole * -> *
        y = _scaled_dot_product_flash_attention_for_cpu(q, d, g) # whole * * * -> * *
        z = y[0]                                      # item -> *
        return z
        ---
        dense_rows = dense_rows(q)
        dense_rows_1 = dense_rows(k)
        dense_rows_2 = dense_rows(v)
        attention = attention(dense_rows, dense_rows_1, dense_rows_2)
        attention[0]
        return attention[0]
    """,
    "but not heads that all are repeated one after the other": """
        q: f32[2, 4, 1, 4]                            # input -> *
        k: f32[2, 2, 2, 4]                            # input -> *
        a = unsqueeze(k, 1)                           # whole * -> *
        b = expand(a, [2, 2, 2, 2, 4])                # whole * -> *
        c = reshape(b, [2, 4, 2, 4])                  # whole * -> *
        y = _scaled_dot_product_flash_attention_for_cpu(q, c, c) # whole * * * -> * *
        z = y[0]                                      # item -> *
        return z
        ---
        unsqueeze = unsqueeze(k, 1)
        expand = expand(unsqueeze, [2, 2, 2, 2, 4])
        reshape = reshape(expand, [2, 4, 2, 4])
        dense_rows = dense_rows(q)
        dense_rows_1 = dense_rows(reshape)
        attention = attention(dense_rows, dense_rows_1, dense_rows_1)
        attention[0]
        return attention[0]
    """,
    "what an op reads in one memory order lies so": """
        g: f32[2, 4, 8, 16]                           # input -> *
        q: f32[2, 4, 8, 16]                           # input -> *
        s: f32[2, 4, 32]                              # input -> *
        i: i64[1]                                     # input -> *
        y = attention_EFFICIENT(g, q, q, q, None, q, s, i, i, 0.0, [True, True, True, False]) # WHOLE
        z = y[0]                                      # item -> *
        return z
        ---
        contiguous = contiguous(g)
        contiguous_1 = contiguous(q)
        permute = permute(q, [0, 2, 1, 3])
        contiguous_2 = contiguous(permute)
        permute_1 = permute(contiguous_2, [0, 2, 1, 3])
        contiguous_3 = contiguous(s)
        contiguous_4 = contiguous(i)
        attention = attention(DENSE, 0.0, MASKS)
        attention[0]
        return attention[0]
    """.replace("attention_EFFICIENT", "_scaled_dot_product_efficient_attention_backward")
    .replace("WHOLE", "whole * * * * * * * * -> * * *")
    .replace("DENSE", f"contiguous, {DENSE}")
    .replace("MASKS", "[True, True, True, False]"),
    "what an op reads in one memory order lies so where one rank draws too": """
        g: f32[2, 4, 8, 16]                           # input -> *
        q: f32[2, 4, 8, 16]                           # input -> *
        s: f32[2, 4, 32]                              # input -> *
        i: i64[1]                                     # input -> *
        y = attention_EFFICIENT(g, q, q, q, None, q, s, i, i, 0.5, [True, True, True, False]) # WHOLE
        z = y[0]                                      # item -> *
        return z
        ---
        contiguous = contiguous(g)
        contiguous_1 = contiguous(q)
        permute = permute(q, [0, 2, 1, 3])
        contiguous_2 = contiguous(permute)
        permute_1 = permute(contiguous_2, [0, 2, 1, 3])
        contiguous_3 = contiguous(s)
        contiguous_4 = contiguous(i)
        broadcast_random = broadcast_random(False, tp, BACKWARD.default, [contiguous, GIVEN])
        broadcast_random[0]
        return broadcast_random[0]
        ---
        contiguous = contiguous(g)
        contiguous_1 = contiguous(q)
        permute = permute(q, [0, 2, 1, 3])
        contiguous_2 = contiguous(permute)
        permute_1 = permute(contiguous_2, [0, 2, 1, 3])
        contiguous_3 = contiguous(s)
        contiguous_4 = contiguous(i)
        broadcast_random = broadcast_random(True, tp, BACKWARD.default, [contiguous, GIVEN])
        broadcast_random[0]
        return broadcast_random[0]
    """.replace("BACKWARD", "attention_EFFICIENT")
    .replace("GIVEN", f"{DENSE}, 0.5, [True, True, True, False]")
    .replace("attention_EFFICIENT", "_scaled_dot_product_efficient_attention_backward")
    .replace("WHOLE", "whole * * * * * * * * -> * * *"),
    "a bias joins its product again": """
        x: f64[3, 64]                 # input -> *
        w: f64[32, 64] = parameter    # input -> 0
        b: f64[32] = parameter        # input -> 0
        y = linear(x, w)              # split * 0 -> 0
        z = add(y, b)                 # split 0 0 -> 0
        return z
        ---
        linear = linear(x, w, b)
        return linear
    """,
    "a bias that is added to a partial sum joins it on one rank": """
        x: f64[3, 64]                 # input -> *
        w: f64[32, 64] = parameter    # input -> 1
        b: f64[32] = parameter        # input -> *
        y = linear(x, w)              # split 1 1 -> +
        z = add(y, b)                 # pending + + -> +
        return z
        ---
        take = take(x, [[1, [[[0, 32]], [[32, 64]]]]], 1)
        linear = linear(take, w)
        all_reduce_ = all_reduce_(linear, sum, tp)
        wait_tensor = wait_tensor(all_reduce_)
        return wait_tensor
        ---
        take = take(x, [[1, [[[0, 32]], [[32, 64]]]]], 0)
        linear = linear(take, w, b)
        contiguous = contiguous(linear)
        all_reduce_ = all_reduce_(contiguous, sum, tp)
        wait_tensor = wait_tensor(all_reduce_)
        return wait_tensor
    """,
    "a residual is added on one rank": """
        x: f64[3, 64]                 # input -> *
        r: f64[3, 32]                 # input -> *
        w: f64[32, 64] = parameter    # input -> 1
        y = linear(x, w)              # split 1 1 -> +
        z = add(y, r)                 # pending + + -> +
        return z
        ---
        take = take(x, [[1, [[[0, 32]], [[32, 64]]]]], 1)
        linear = linear(take, w)
        all_reduce_ = all_reduce_(linear, sum, tp)
        wait_tensor = wait_tensor(all_reduce_)
        return wait_tensor
        ---
        take = take(x, [[1, [[[0, 32]], [[32, 64]]]]], 0)
        linear = linear(take, w)
        add = add(linear, r)
        contiguous = contiguous(add)
        all_reduce_ = all_reduce_(contiguous, sum, tp)
        wait_tensor = wait_tensor(all_reduce_)
        return wait_tensor
    """,
    "sizes of a rank's shard": """
        x: f64[3, 8]                  # input -> *
        w: f64[12, 8] = parameter     # input -> 0
        y = linear(x, w)              # split * 0 -> 0
        z = reshape(y, [3, 3, 4])     # split 0 -> 0
        u = cos(z)                    # split 0 -> 0
        return u
        ---
        linear = linear(x, w)
        reshape = reshape(linear, [3, 1, 4])
        cos = cos(reshape)
        return cos
    """,
    "a slice of a rank's shard": """
        x: f64[3, 8]                  # input -> *
        w: f64[12, 8] = parameter     # input -> 0
        y = linear(x, w)              # split * 0 -> 0
        z = slice(y, 1, 0, 6)         # split 0 -> 0
        u = slice(y, 1, 6, 12)        # split 0 -> 0
        v = mul(z, u)                 # split 0 0 -> 0
        return v
        ---
        linear = linear(x, w)
        slice = slice(linear, 1, 0, 3)
        slice_1 = slice(linear, 1, 3, 6)
        mul = mul(slice, slice_1)
        return mul
    """,
}


@pytest.mark.parametrize("name", CASES)
def test_rank(name: str) -> None:
    before, one, *zero = parts(CASES[name])
    parallel = after("insert", chosen(before))
    assert calls(localize(parallel, 1, 2, "tp", draws=False)) == one
    for expected in zero:
        assert calls(localize(parallel, 0, 2, "tp", draws=True)) == expected
