"""Dimensions of which nothing is known: new, and whole on every rank."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.axes import Dim, Size, find
from ..ir.op_dims import Bound, Call, Dims


def unknown(bound: Bound, sizes: Sequence[Size]) -> Dims:
    """New dimensions, whole."""
    dims = [Dim(size) for size in sizes]
    bound.whole += dims
    return dims


def checked(bound: Bound, call: Call, dims: Dims, index: int = 0) -> Dims:
    """Result dimensions whose sizes are the result's; any other is new and whole."""
    sizes = call.result_sizes(index)
    if len(dims) != len(sizes):
        for dim in dims:
            bound.whole.append(dim)
        return unknown(bound, sizes)
    checked = []
    for dim, size in zip(dims, sizes, strict=True):
        if find(dim).size == size:
            checked.append(dim)
        else:
            bound.whole.append(dim)
            checked += unknown(bound, [size])
    return checked


def unsplit(call: Call) -> Bound:
    """Nothing of it may be split."""
    bound = Bound(call.dims, [])
    bound.results = [unknown(bound, call.result_sizes(index)) for index in range(len(call.results))]
    bound.whole += [dim for dims in call.dims for dim in dims]
    return bound
