"""Rules that depend on arguments: functions from a `Call` to a `Bound`, one for each kind of shape change.

Each returns what a string in the table of ops would say. What the arguments leave open (a slice that cuts through the
middle of a head, a dimension that an index reorders) is a new dimension, and whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from .axes import Dim, Size, concat, cut, find, product, slice_of
from .rules import Bound, Call, Dims, Rule, is_tensor

FULL = torch.iinfo(torch.int64).max


def _unknown(bound: Bound, sizes: Sequence[Size]) -> Dims:
    dims = [Dim(size) for size in sizes]
    bound.whole += dims
    return dims


def _checked(bound: Bound, call: Call, dims: Dims, index: int = 0) -> Dims:
    """Result dimensions whose sizes are the result's; any other is new and whole."""
    sizes = call.result_sizes(index)
    if len(dims) != len(sizes):
        for dim in dims:
            bound.whole.append(dim)
        return _unknown(bound, sizes)
    checked = []
    for dim, size in zip(dims, sizes, strict=True):
        if find(dim).size == size:
            checked.append(dim)
        else:
            bound.whole.append(dim)
            checked += _unknown(bound, [size])
    return checked


def linear(call: Call) -> Bound:
    """x @ w.T: with a bias every rank would add it to its addend, so what is contracted must be whole."""
    if call.get("bias") is not None:
        return Rule("... k!, n k!, n -> ... n").bind(call)
    return Rule("... k, n k -> ... n", linear=((0,), (1,))).bind(call)


def baddbmm(call: Call) -> Bound:
    """A batch of products added to what broadcasts to it."""
    added = " ".join(["b", "m", "n"][3 - len(call.dims[0]) :])
    return Rule(f"{added}, b m k!, b k! n -> b m n").bind(call)


def attention(call: Call) -> Bound:
    """Heads by themselves; several query heads may share one of the keys' and values'."""
    query, key = find(call.dims[0][1]).size, find(call.dims[1][1]).size
    heads, group = ("h", "h") if call.same_size(query, key) else ("h", "1") if key == 1 else ("(g r)", "g")
    mask = " ".join(["b", heads, "q!", "k!"][4 - len(call.dims[3]) :]) if len(call.dims) > 3 else ""
    keys = f"b {group} k! e!, b {group} k! f!, {mask}"
    sums = f"b {heads} q! 1" if call.results[1].dim() == 4 else f"b {heads} q!"  # cuDNN keeps the dimension
    return Rule(f"b {heads} q! e!, {keys} -> b {heads} q! f!, {sums}").bind(call)


def grouped_mm(call: Call) -> Bound:
    """Each expert's tokens, which lie one after the other, by that expert's matrix."""
    if [len(dims) for dims in call.dims] != [2, 3, 1]:
        return unsplit(call)
    return Rule("t! k, e! k n, e! -> t! n", linear=((0,), (1,))).bind(call)


def norm(call: Call) -> Bound:
    """The last dimensions normalised together, whole."""
    count = len(call["normalized_shape"])
    last, ones = " ".join(f"d{index}!" for index in range(count)), " ".join("1" * count)
    return Rule(f"... {last}, {last}, {last} -> ... {last}, ... {ones}, ... {ones}").bind(call)


def unsplit(call: Call) -> Bound:
    """Nothing of it may be split."""
    bound = Bound(call.dims, [])
    bound.results = [_unknown(bound, call.result_sizes(index)) for index in range(len(call.results))]
    bound.whole += [dim for dims in call.dims for dim in dims]
    return bound


def fresh(call: Call) -> Bound:
    """A value made from nothing, the same at every index: each rank makes its part."""
    bound = Bound(call.dims, [[Dim(size) for size in call.result_sizes()]])
    bound.whole += [dim for dims in call.dims for dim in dims]
    return bound


def pointwise(call: Call) -> Bound:
    """Every index by itself, operands broadcast from the right."""
    bound = Bound(call.dims, [])
    for index in range(len(call.results)):
        sizes = call.result_sizes(index)
        dims: Dims = []
        for position, size in enumerate(sizes):
            meeting = [
                operand[position - len(sizes)]
                for operand in call.dims
                if len(sizes) - position <= len(operand) and find(operand[position - len(sizes)]).size == size
            ]
            dims.append(meeting[0] if meeting else Dim(size))
            for other in meeting[1:]:
                bound.match(dims[-1], other)
            if not meeting:
                bound.whole.append(dims[-1])
        bound.results.append(dims)
    _flag_unmatched(bound, call)
    return bound


def _flag_unmatched(bound: Bound, call: Call) -> None:
    """An operand's dimension whose size is neither 1 nor the result's, provably, must be whole."""
    sizes = call.result_sizes()
    for operand in call.dims:
        for dim, size in zip(reversed(operand), reversed(sizes), strict=False):
            if find(dim).size not in (1, size):
                bound.whole.append(dim)


def cast(call: Call) -> Bound:
    """A copy to another type or device; linear between floating types."""
    bound = pointwise(call)
    if _floating(call):
        bound.linear = ((0,),)
    return bound


def _floating(call: Call) -> bool:
    """Whether nothing is rounded on the way from the operand to the result."""
    source, result = call.operands[0].meta["val"], call.results[0]
    return bool(source.dtype.is_floating_point and result.dtype.is_floating_point)


def masked_fill(call: Call) -> Bound:
    """Linear where the masked places become zero."""
    bound = pointwise(call)
    if call["value"] == 0:
        bound.linear = ((0,),)
    return bound


def view(call: Call) -> Bound:
    """Blocks of dimensions whose products agree are the same, seen differently."""
    bound = Bound(call.dims, [])
    source, sizes = call.dims[0], call.result_sizes()
    hints = [int(_hint(extent)) for extent in call.results[0].shape]
    source_hints = [int(_hint(extent)) for extent in call.operands[0].meta["val"].shape]
    result: Dims = []
    for (i, j), (k, m) in _blocks(source, source_hints, sizes, hints):
        result += _view_block(bound, source[i:j], sizes[k:m])
    bound.results = [_checked(bound, call, result)]
    return bound


def _view_block(bound: Bound, source: Sequence[Dim], sizes: Sequence[Size]) -> Dims:
    if len(sizes) == 1:
        return [product(source)]
    if len(source) == 1 and [find(source[0]).size] == [size for size in sizes if size != 1]:
        return [source[0] if size != 1 else Dim(1) for size in sizes]
    dims = [Dim(size) for size in sizes]
    whole = product(source)
    bound.match(whole, product(dims))
    return dims


def _hint(extent: Any) -> int:
    return extent.node.hint if isinstance(extent, torch.SymInt) else extent


def _blocks(
    source: Sequence[Dim], source_hints: Sequence[int], sizes: Sequence[Size], hints: Sequence[int]
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The finest blocks of dimensions, before and after, that have provably equal products."""
    blocks, i, k = [], 0, 0
    while i < len(source) or k < len(sizes):
        j, m = min(i + 1, len(source)), min(k + 1, len(sizes))
        while not _equal_products(source[i:j], sizes[k:m]):
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


def _equal_products(source: Sequence[Dim], sizes: Sequence[Size]) -> bool:
    return bool(_times([find(dim).size for dim in source]) == _times(sizes))


def _times(sizes: Sequence[Any]) -> Any:
    total: Any = 1
    for size in sizes:
        total = total * size
    return total


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
    bound.results = [_checked(bound, call, kept)]
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
    bound.results = [_checked(bound, call, result)]
    bound.whole += [dim for dim, times in zip(dims, call["repeats"], strict=True) if times != 1]
    return bound


def along(call: Call) -> Bound:
    """Some dimensions of the first operand are worked along and whole, the others are free."""
    bound = Bound(call.dims, [])
    touched = _touched(call)
    bound.whole += [dim for index, dim in enumerate(call.dims[0]) if index in touched]
    bound.whole += [dim for dims in call.dims[1:] for dim in dims]
    for index in range(len(call.results)):
        bound.results.append(_checked(bound, call, list(call.dims[0]), index))
    return bound


def along_gone(call: Call) -> Bound:
    """Some dimensions of the operand must be whole and are gone, or of size 1, in the results."""
    bound = Bound(call.dims, [])
    touched = _touched(call)
    bound.whole += [dim for index, dim in enumerate(call.dims[0]) if index in touched]
    for index in range(len(call.results)):
        bound.results.append(_checked(bound, call, _reduced(call, touched), index))
    return bound


def reduction(call: Call) -> Bound:
    """Some dimensions are contracted."""
    touched = _touched(call)
    bound = Bound(call.dims, [])
    bound.contracted = [dim for index, dim in enumerate(call.dims[0]) if index in touched]
    name = str(call.node.target)
    if "amax" in name or "amin" in name:
        bound.reduce = "max" if "amax" in name else "min"
    elif _floating(call):
        bound.linear = ((0,),)
    bound.results = [_checked(bound, call, _reduced(call, touched))]
    return bound


def cumsum(call: Call) -> Bound:
    """Sums along one dimension; linear unless they are rounded to integers."""
    bound = along(call)
    if _floating(call):
        bound.linear = ((0,),)
    return bound


def _touched(call: Call) -> set[int]:
    given = call.get("dims", call.get("dim", -1 if "dim" in call.args else None))
    if given is None or given == []:
        return set(range(len(call.dims[0])))
    return {call.dim(index) for index in (given if isinstance(given, (list, tuple)) else [given])}


def _reduced(call: Call, touched: set[int]) -> Dims:
    kept = [None if index in touched else dim for index, dim in enumerate(call.dims[0])]
    if call.get("keepdim"):
        return [Dim(1) if dim is None else dim for dim in kept]
    return [dim for dim in kept if dim is not None]


def pad(call: Call) -> Bound:
    """Padded dimensions are whole, from the last one back."""
    amounts = call["pad"]
    dims = list(call.dims[0])
    bound = Bound(call.dims, [])
    for position in range(len(amounts) // 2):
        if amounts[2 * position] != 0 or amounts[2 * position + 1] != 0:
            bound.whole.append(dims[-1 - position])
            dims[-1 - position] = Dim(0)
    bound.results = [_checked(bound, call, dims)]
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
    bound.results = [_checked(bound, call, joined)]
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
    bound.results = [_checked(bound, call, first)]
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
        result[at] = part or _unknown(bound, [call.result_sizes()[at]])[0]
    elif call["step"] != 1 and size != 1:
        bound.whole.append(dim)
    bound.results = [_checked(bound, call, result)]
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
    bound.results = [_checked(bound, call, [d for i, d in enumerate(call.dims[0]) if i != at])]
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
        elif rest is not None and isinstance(size, int):
            part, rest = cut(rest, size) or (None, None)
        if part is None:
            bound.whole.append(call.dims[0][at])
            rest = None
        dims = list(call.dims[0])
        dims[at] = part if part is not None else _unknown(bound, [size])[0]
        bound.results.append(_checked(bound, call, dims, index))
    return bound


def unbind(call: Call) -> Bound:
    """A dimension taken apart into its indices."""
    bound = Bound(call.dims, [])
    at = call.dim(call["dim"])
    bound.whole.append(call.dims[0][at])
    kept = [dim for index, dim in enumerate(call.dims[0]) if index != at]
    bound.results = [_checked(bound, call, kept, index) for index in range(len(call.results))]
    return bound


def index_select(call: Call) -> Bound:
    """Indices along one dimension, which must be whole."""
    bound = Bound(call.dims, [])
    at = call.dim(call["dim"])
    result = list(call.dims[0])
    bound.whole += [result[at], *call.dims[1]]
    result[at] = _unknown(bound, [call.result_sizes()[at]])[0]
    bound.results = [_checked(bound, call, result)]
    return bound


def gather(call: Call) -> Bound:
    """An index for every element: whole along its dimension, and along those that the index cuts short."""
    bound = Bound(call.dims, [])
    at = call.dim(call["dim"])
    source, indices = call.dims
    for position, (left, right) in enumerate(zip(source, indices, strict=True)):
        if position == at or find(left).size != find(right).size:
            bound.whole += [left, right]
        else:
            bound.match(left, right)
    bound.results = [_checked(bound, call, list(indices))]
    return bound


def _indexed(call: Call) -> tuple[list[int], bool]:
    """Which dimensions have an index tensor, and whether those are side by side."""
    given = [position for position, item in enumerate(call["indices"]) if isinstance(item, Node)]
    return given, given == list(range(given[0], given[-1] + 1)) if given else True


def _index_broadcast(call: Call, bound: Bound) -> Dims:
    """The dimensions that the index tensors make together; all whole."""
    tensors = [item for item in call["indices"] if isinstance(item, Node)]
    shapes = [item.meta["val"].shape for item in tensors]
    operands = call.dims[1 : 1 + len(tensors)]
    bound.whole += [dim for dims in operands for dim in dims]
    return [Dim(call.size(size)) for size in torch.broadcast_shapes(*shapes)]


def index(call: Call) -> Bound:
    """Advanced indexing: indexed dimensions and index tensors are whole, the others free."""
    bound = Bound(call.dims, [])
    source = call.dims[0]
    given, adjacent = _indexed(call)
    if any(item.meta["val"].dtype in (torch.bool, torch.uint8) for item in call["indices"] if is_tensor(item)):
        return unsplit(call)
    made = _index_broadcast(call, bound)
    bound.whole += made + [source[position] for position in given]
    free = [dim for position, dim in enumerate(source) if position not in given]
    before = given[0] if adjacent and given else 0
    bound.results = [_checked(bound, call, [*free[:before], *made, *free[before:]])]
    return bound


def index_put(call: Call) -> Bound:
    """Writes by index tensors: indexed dimensions are whole; the values' other dimensions are the target's."""
    if any(item.meta["val"].dtype in (torch.bool, torch.uint8) for item in call["indices"] if is_tensor(item)):
        return unsplit(call)
    bound = Bound(call.dims, [list(call.dims[0])])
    source, values = call.dims[0], call.dims[-1]
    given, adjacent = _indexed(call)
    made = _index_broadcast(call, bound)
    bound.whole += [source[position] for position in given]
    free = [dim for position, dim in enumerate(source) if position not in given]
    before = given[0] if adjacent and given else 0
    target = [*free[:before], *made, *free[before:]]
    for left, right in zip(reversed(target), reversed(values), strict=False):
        if find(right).size != 1:
            bound.match(left, right)
    bound.whole += made
    return bound


def index_copy(call: Call) -> Bound:
    """Writes along one dimension, which must be whole."""
    bound = Bound(call.dims, [list(call.dims[0])])
    at = call.dim(call["dim"])
    target, indices, source = call.dims
    bound.whole += [target[at], source[at], *indices]
    for position, (left, right) in enumerate(zip(target, source, strict=True)):
        if position != at:
            bound.match(left, right)
    return bound

