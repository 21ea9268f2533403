"""Rules that depend on arguments: functions from a `Call` to a `Bound`, one for each kind of shape change.

Each returns what a string in the table of ops would say. What the arguments leave open (a slice that cuts
through the middle of a head, a dimension that an index reorders) is a new dimension, and whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..ir.axes import Dim, Size, concat, cut, find, has_intervals, product, slice_of
from ..ir.nodes import hint_of
from ..ir.op_dims import Bound, Call, Dims
from .whole_dims import checked, unknown

FULL = torch.iinfo(torch.int64).max


def view(call: Call) -> Bound:
    """Blocks of dimensions whose products agree are the same, seen differently."""
    bound = Bound(call.dims, [])
    source, sizes = call.dims[0], call.result_sizes()
    hints = [hint_of(extent) for extent in call.results[0].shape]
    source_hints = [hint_of(extent) for extent in call.operands[0].meta["val"].shape]
    result: Dims = []
    for (i, j), (k, m) in _blocks(call, source, source_hints, sizes, hints):
        result += _view_block(bound, source[i:j], sizes[k:m])
    bound.results = [checked(bound, call, result)]
    return bound


def _view_block(bound: Bound, source: Sequence[Dim], sizes: Sequence[Size]) -> Dims:
    if len(sizes) == 1:
        return [product(source, sizes[0])]
    if len(source) == 1 and [find(source[0]).size] == [size for size in sizes if size != 1]:
        return [source[0] if size != 1 else Dim(1) for size in sizes]
    dims = [Dim(size) for size in sizes]
    whole = product(source)
    bound.match(whole, product(dims, find(whole).size))
    return dims


def _blocks(
    call: Call,
    source: Sequence[Dim],
    source_hints: Sequence[int],
    sizes: Sequence[Size],
    hints: Sequence[int],
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The finest blocks of dimensions, before and after, that have provably equal products."""
    blocks, i, k = [], 0, 0
    while i < len(source) or k < len(sizes):
        j, m = min(i + 1, len(source)), min(k + 1, len(sizes))
        while not call.same_size(_times([find(dim).size for dim in source[i:j]]), _times(sizes[k:m])):
            before, after = _times(source_hints[i:j]), _times(hints[k:m])
            if before <= after and j < len(source):
                j += 1
            elif m < len(sizes):
                m += 1
            elif j < len(source):
                j += 1
            else:
                break
        blocks.append(((i, j), (k, m)))
        i, k = j, m
    return blocks


def _times(sizes: Sequence[Any]) -> Any:
    total: Any = 1
    for size in sizes:
        total = total * size
    return total


def view_dtype(call: Call) -> Bound:
    """The same memory as elements of another size: in the last dimension several for one, kept together."""
    dims = list(call.dims[0])
    before, after = call.operands[0].meta["val"].dtype.itemsize, call["dtype"].itemsize
    if before == after:
        return Bound(call.dims, [dims])
    together = Dim(max(before, after) // min(before, after))
    bound = Bound(call.dims, [], whole=[together])
    if before > after:
        bound.results = [[*dims[:-1], product([dims[-1], together])]]
    else:
        last = Dim(call.result_sizes()[-1])
        bound.match(dims[-1], product([last, together], find(dims[-1]).size))
        bound.results = [[*dims[:-1], last]]
    return bound


def permute(call: Call) -> Bound:
    """Dimensions in another order."""
    dims = list(call.dims[0])
    if "dims" in call.args:
        order = [call.dim(index) for index in call["dims"]]
    else:
        first, second = call.get("dim0", 0), call.get("dim1", 1)
        order = list(range(len(dims)))
        if len(dims) > 1:
            first, second = call.dim(first), call.dim(second)
            order[first], order[second] = order[second], order[first]
    return Bound(call.dims, [[dims[index] for index in order]])


def unsqueeze(call: Call) -> Bound:
    """A dimension of size 1 more."""
    dims = list(call.dims[0])
    dims.insert(call.dim(call["dim"], len(dims) + 1), Dim(1))
    return Bound(call.dims, [dims])


def squeeze(call: Call) -> Bound:
    """Dimensions of size 1 gone."""
    dims = call.dims[0]
    given = call.get("dim", range(len(dims)))
    gone = {call.dim(index) for index in (given if isinstance(given, (list, tuple, range)) else [given])}
    bound = Bound(call.dims, [])
    kept = [dim for index, dim in enumerate(dims) if index not in gone or find(dim).size != 1]
    bound.results = [checked(bound, call, kept)]
    return bound


def expand(call: Call) -> Bound:
    """Dimensions of size 1 repeated, and new ones in front: any part of them can be made alone."""
    sizes = call.result_sizes()
    missing = len(sizes) - len(call.dims[0])
    dims = [Dim(1)] * missing + list(call.dims[0])
    bound = Bound(call.dims, [])
    result = [dim if find(dim).size == size else Dim(size) for dim, size in zip(dims, sizes, strict=True)]
    for dim, size in zip(dims, sizes, strict=True):
        if find(dim).size not in (1, size):
            bound.whole.append(dim)
    bound.results = [result]
    return bound


def repeat(call: Call) -> Bound:
    """Whole copies one after the other."""
    dims = [Dim(1)] * (len(call["repeats"]) - len(call.dims[0])) + list(call.dims[0])
    bound = Bound(call.dims, [])
    result = [dim if times == 1 else Dim(0) for dim, times in zip(dims, call["repeats"], strict=True)]
    bound.results = [checked(bound, call, result)]
    bound.whole += [dim for dim, times in zip(dims, call["repeats"], strict=True) if times != 1]
    return bound


def pad(call: Call) -> Bound:
    """Padded dimensions are whole, from the last one back."""
    amounts = call["pad"]
    dims = list(call.dims[0])
    bound = Bound(call.dims, [])
    for position in range(len(amounts) // 2):
        if amounts[2 * position] != 0 or amounts[2 * position + 1] != 0:
            bound.whole.append(dims[-1 - position])
            dims[-1 - position] = Dim(0)
    bound.results = [checked(bound, call, dims)]
    return bound


def cat(call: Call) -> Bound:
    """The concatenation of one dimension; the others agree."""
    bound = Bound(call.dims, [])
    given = [dims for dims in call.dims if len(dims) != 1 or find(dims[0]).size != 0] or call.dims[:1]
    first = given[0]
    at = call.dim(call["dim"], len(first))
    for dims in given[1:]:
        for index, (left, right) in enumerate(zip(first, dims, strict=True)):
            if index != at:
                bound.match(left, right)
    joined = [concat(dims[at] for dims in given) if index == at else dim for index, dim in enumerate(first)]
    bound.results = [checked(bound, call, joined)]
    bound.linear = (tuple(range(len(call.dims))),)
    return bound


def stack(call: Call) -> Bound:
    """A new dimension, one index an operand."""
    bound = Bound(call.dims, [])
    first = list(call.dims[0])
    for dims in call.dims[1:]:
        for left, right in zip(first, dims, strict=True):
            bound.match(left, right)
    new = Dim(len(call.dims))
    bound.whole.append(new)
    first.insert(call.dim(call["dim"], len(first) + 1), new)
    bound.results = [checked(bound, call, first)]
    bound.linear = (tuple(range(len(call.dims))),)
    return bound


def bounds(start: Any, stop: Any, size: Size) -> tuple[int, int] | None:
    """Start and stop of a slice as PyTorch reads them; None where they, or the size, are symbolic."""
    start, stop = 0 if start is None else start, FULL if stop is None else stop
    if not all(isinstance(value, int) for value in (start, stop, size)):
        return None
    assert isinstance(size, int)
    start = max(0, start + size if start < 0 else start)
    stop = max(0, stop + size if stop < 0 else stop)
    return min(start, size), max(min(stop, size), min(start, size))


def slice_(call: Call) -> Bound:
    """A part of one dimension."""
    bound = Bound(call.dims, [])
    at = call.dim(call["dim"])
    dim = call.dims[0][at]
    size = find(dim).size
    result = list(call.dims[0])
    if call.result_sizes()[at] != size:
        limits = bounds(call["start"], call["end"], size) if call["step"] == 1 else None
        part = limits and slice_of(dim, *limits)
        if part is None:
            bound.whole.append(dim)
        result[at] = part or unknown(bound, [call.result_sizes()[at]])[0]
    elif not has_intervals(dim) or (call["step"] != 1 and size != 1):
        bound.whole.append(dim)
    bound.results = [checked(bound, call, result)]
    return bound


def select(call: Call) -> Bound:
    """One index of a dimension, which is gone: an index that is a part of its own needs nothing else."""
    bound = Bound(call.dims, [])
    at = call.dim(call["dim"])
    dim, index = call.dims[0][at], call["index"]
    size = find(dim).size
    part = None
    if isinstance(size, int) and isinstance(index, int) and size > 1:
        index %= size
        part = slice_of(dim, index, index + 1)
    if part is None:
        bound.whole.append(dim)
    bound.results = [checked(bound, call, [d for i, d in enumerate(call.dims[0]) if i != at])]
    return bound


def split(call: Call) -> Bound:
    """A dimension cut into pieces, one result each."""
    at = call.dim(call["dim"])
    bound = Bound(call.dims, [])
    rest: Dim | None = call.dims[0][at]
    for index in range(len(call.results)):
        size = call.result_sizes(index)[at]
        part = None
        if size == 0:
            part = Dim(0)
        elif rest is not None and size == find(rest).size:
            part, rest = rest, Dim(0)
            if not has_intervals(part):
                bound.whole.append(part)
        elif rest is not None and isinstance(size, int):
            part, rest = cut(rest, size) or (None, None)
        if part is None:
            bound.whole.append(call.dims[0][at])
            rest = None
        dims = list(call.dims[0])
        dims[at] = part if part is not None else unknown(bound, [size])[0]
        bound.results.append(checked(bound, call, dims, index))
    return bound


def unbind(call: Call) -> Bound:
    """A dimension taken apart into its indices."""
    bound = Bound(call.dims, [])
    at = call.dim(call["dim"])
    bound.whole.append(call.dims[0][at])
    kept = [dim for index, dim in enumerate(call.dims[0]) if index != at]
    bound.results = [checked(bound, call, kept, index) for index in range(len(call.results))]
    return bound


def diagonal(call: Call) -> Bound:
    """Two dimensions become one, the last."""
    bound = Bound(call.dims, [])
    pair = {call.dim(call["dim1"]), call.dim(call["dim2"])}
    bound.whole += [call.dims[0][index] for index in pair]
    kept = [dim for index, dim in enumerate(call.dims[0]) if index not in pair]
    bound.results = [[*kept, *unknown(bound, call.result_sizes()[-1:])]]
    return bound


def diag_embed(call: Call) -> Bound:
    """The last dimension becomes two."""
    sizes = call.result_sizes()
    pair = sorted(call.dim(call[name], len(sizes)) for name in ("dim1", "dim2"))
    bound = Bound(call.dims, [])
    bound.whole.append(call.dims[0][-1])
    result = list(call.dims[0][:-1])
    for index in pair:
        result.insert(index, unknown(bound, [sizes[index]])[0])
    bound.results = [result]
    return bound


def windows(call: Call) -> Bound:
    """A dimension becomes its windows, and a last one what lies in each."""
    bound = Bound(call.dims, [])
    sizes, at, dims = call.result_sizes(), call.dim(call["dimension"]), call.dims[0]
    bound.whole += dims[at : at + 1]
    made, inside = (
        unknown(bound, one) for one in (sizes[at:-1][:1], sizes[-1:])
    )  # a number has a window alone
    bound.results = [[*dims[:at], *made, *dims[at + 1 :], *inside]]
    return bound
