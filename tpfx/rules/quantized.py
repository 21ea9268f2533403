"""Rules of the kernels of libraries of quantized weights, by name: the libraries need not be installed.

Numbers of 4 bits are packed row by row, with a scale for each block of so many; or by parts of the rows, the
first of each part in one byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

from ..ir.axes import Dim, concat, find, has_intervals, product
from ..ir.op_dims import Bound, Call, Dims
from .rule import Lowering, Rule
from .whole_dims import unsplit


def packed_linear(call: Call) -> Bound:
    """x @ w.T of a packed matrix: what is contracted is divided between blocks, with a bias it is whole."""
    parts = _packed_parts(call, "B", call["shapeB"])
    if parts is None or len(call.dims) > 4 or find(call.dims[0][-1]).size != call["shapeB"][1]:
        return unsplit(call)
    bound, rows, columns = parts
    *lead, inner = call.dims[0]
    bound.match(inner, product(columns))
    bound.results = [[*lead, product(rows)]]
    if call.get("bias") is None:
        bound.contracted = [inner]
        bound.linear = ((0,),)
    else:
        bound.match(call.dims[-1][0], product(rows))
        bound.whole.append(inner)
    return bound


def unpacked(call: Call) -> Bound:
    """The numbers of a packed matrix: rows by themselves, columns between blocks."""
    parts = _packed_parts(call, "A", call["shape"])
    if parts is None:
        return unsplit(call)
    bound, rows, columns = parts
    bound.results = [[product(rows), product(columns)]]
    return bound


def _packed_parts(call: Call, name: str, shape: Sequence[Any]) -> tuple[Bound, Dims, Dims] | None:
    """What the rows and columns of a packed matrix are made of; None where blocks end in the middle of one.

    Where a row is no whole number of blocks, some rows together are, and stay together, with all columns.
    """
    packed, scales = (
        call.dims[call.operands.index(call[name])],
        call.dims[call.operands.index(call["absmax"])],
    )
    if len(shape) != 2 or not all(type(size) is int and size > 0 for size in shape):
        return None
    (height, width), block = shape, call["blocksize"]
    together = block // gcd(width, block)
    rows, columns = [Dim(height // together), Dim(together)], [Dim(width)]
    per_word, count = 2 * call[name].meta["val"].element_size(), height * width
    words = [find(dim).size for dim in packed]
    is_known = words[:1] == [count // per_word] and words[1:] in ([], [1])
    if height % together or block % per_word or not is_known or find(scales[0]).size != count // block:
        return None
    if together == 1:
        columns = [Dim(width // block), Dim(block)]
        outer, of_scales, inside = [rows[0], columns[0]], Dim(1), Dim(block // per_word)
    else:
        outer, of_scales, inside = rows[:1], Dim(together * width // block), Dim(together * width // per_word)
    bound = Bound(call.dims, [], whole=[rows[1], columns[-1], of_scales, inside])
    bound.match(packed[0], product([*outer, inside]))
    bound.match(scales[0], product([*outer, of_scales]))
    return bound, rows, columns


def scaled_by_block(call: Call) -> Bound:
    """Numbers looked up in a table, with a scale for each block of so many: any of them by themselves."""
    if len(call.dims[0]) != 1 or not has_intervals(call.dims[0][0]):
        return unsplit(call)
    bound = Bound(call.dims, [list(call.dims[0])])
    bound.whole += [dim for dims in call.dims[1:] for dim in dims]
    return bound


def scaled_linear(call: Call) -> Bound:
    """x @ (scales * w).T, a scale for each row of w: rows and what is contracted are free."""
    if len(call.dims[2]) != 2 or find(call.dims[2][1]).size != 1:
        return unsplit(call)
    return Rule("... k, n k, n o -> ... n", ((0,),)).bind(call)


def unpacked_parts(call: Call) -> Bound:
    """Bytes that have a number of each part of the first dimension: the parts, one after another."""
    first, *others = call.dims[0]
    return Bound(call.dims, [[concat([first] * (8 // call["bits"])), *others]])


KERNELS: dict[str, Rule] = {
    "bitsandbytes.gemm_4bit.default": Rule(packed_linear, lower=Lowering.PACKED_LINEAR),
    "bitsandbytes.dequantize_4bit.default": Rule(unpacked, lower=Lowering.UNPACKED),
    "bitsandbytes.dequantize_blockwise.default": Rule(scaled_by_block, lower=Lowering.BY_BLOCK),
    "quanto.qbytes_mm.default": Rule(scaled_linear, pad_empty_shards=True),
    "quanto.unpack.default": Rule(unpacked_parts),
}
