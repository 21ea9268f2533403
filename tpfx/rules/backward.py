"""Rules of the ops that only backward passes have.

The gradient of a weight is a sum over everything that the weight was used for: split along what is summed
over, it is a partial sum, while the gradient of the other operand may be a shard. A rule says so by
contracting a dimension that some results have and others have not.
"""

from __future__ import annotations

from typing import Any

from ..ir.axes import Dim, find, slice_of
from ..ir.nodes import is_tensor, size_of
from ..ir.op_dims import Bound, Call, Dims
from .indexing import largest
from .reductions import flex_terms
from .rule import Rule
from .views import bounds
from .whole_dims import checked, unknown, unsplit


def attention_backward(call: Call) -> Bound:
    """Heads by themselves; keys' and values' gradients are sums over the query heads that share them.

    A bias may have a gradient too. What else kernels of a GPU are given (the state that dropout drew from,
    the ends of packed sequences) is whole.
    """
    query, key = (find(call.dims[position][1]).size for position in (1, 2))
    heads, group = ("h", "h") if call.same_size(query, key) else ("h", "1") if key == 1 else ("(g r)", "g")
    q, k, v, out = f"b {heads} q! e!", f"b {group} k! e!", f"b {group} k! f!", f"b {heads} q! f!"
    lse, mask = call.get("logsumexp"), call.get("attn_mask", call.get("attn_bias"))
    known = {"query": q, "key": k, "value": v, "out": out, "grad_out": out, "grad_out_": out}
    # Some kernels pad the queries, and some keep the dimension that is summed over.
    known["logsumexp"] = f"b {heads} s!" + " 1" * (lse.meta["val"].dim() - 3)
    if mask is not None:
        sizes = list(map(size_of, mask.meta["val"].shape))
        last = zip(["b", heads, "q!", "k!"][-len(sizes) :], sizes, strict=True)
        known["attn_mask"] = known["attn_bias"] = " ".join("1" if size == 1 else name for name, size in last)
    names = [a.name for a in call.node.target._schema.arguments if "Tensor" in str(a.type)]  # type: ignore[union-attr]
    given = [known[name] if name in known else _whole(name, call[name]) for name in names]
    results = [q, k, v, known.get("attn_bias", "")][: len(call.results)]
    return Rule(f"{', '.join(given)} -> {', '.join(results)}", each=True).bind(call)


def _whole(name: str, operand: Any) -> str:
    """An operand in a rule, whole, of which the rule says nothing else."""
    dims = operand.meta["val"].dim() if is_tensor(operand) else 0
    return " ".join(f"{name}{at}!" for at in range(dims))


def flex_attention_backward(call: Call) -> Bound:
    """Examples and heads by themselves; gradients of what scores were made with are sums over both."""
    terms = flex_terms(call)
    heads, group = terms["heads"], terms["group"]
    results = [f"b {heads} q! e!", f"b {group} k! e!", f"b {group} k! f!"]
    for at, given in enumerate(call.results[3:]):
        results.append(" ".join(f"i{at}_{index}!" for index in range(given.dim())))
    return Rule(f"{terms['operands']} -> {', '.join(results)}", each=True).bind(call)


def norm_backward(call: Call) -> Bound:
    """The last dimensions normalised together; the gradients of their weights are sums over the others."""
    count = len(call["normalized_shape"])
    x = call.dims[0]
    lead, last = x[: len(x) - count], x[len(x) - count :]
    bound = Bound(call.dims, [])
    for dims in call.dims[1:]:
        given = lead if len(dims) == len(x) else []
        for left, right in zip([*given, *last], dims, strict=True):
            if find(right).size != 1:
                bound.match(left, right)
    bound.whole += last
    bound.contracted, bound.each = list(lead), True
    made: list[Dims] = [list(x), list(last), list(last)]
    wanted = [dims for dims, kept in zip(made, call["output_mask"], strict=False) if kept]
    bound.results = [checked(bound, call, dims, index) for index, dims in enumerate(wanted)]
    return bound


def softmax_backward(call: Call) -> Bound:
    """Both operands alike; what was normalised along is whole."""
    gradient, output = call.dims
    bound = Bound(call.dims, [list(gradient)])
    for left, right in zip(gradient, output, strict=True):
        bound.match(left, right)
    at = call.dim(call["dim"])
    bound.whole += gradient[at : at + 1]
    return bound


def slice_backward(call: Call) -> Bound:
    """The slice in its place, zeros elsewhere."""
    bound = Bound(call.dims, [])
    gradient, sizes, at = list(call.dims[0]), call.result_sizes(), call.dim(call["dim"])
    limits = bounds(call["start"], call["end"], sizes[at]) if call["step"] == 1 else None
    whole = Dim(sizes[at])
    part = limits and slice_of(whole, *limits)
    if part is not None and find(part).size == find(gradient[at]).size:
        bound.match(part, gradient[at])
    else:
        bound.whole.append(gradient[at])
        whole = unknown(bound, [sizes[at]])[0]
    gradient[at] = whole
    bound.results = [gradient]
    bound.linear = ((0,),)
    return bound


def embedding_backward(call: Call) -> Bound:
    """Each row of the table's gradient is the sum of those of its lookups."""
    bound = Bound(call.dims, [])
    *lead, width = call.dims[0]
    for left, right in zip(lead, call.dims[1], strict=True):
        bound.match(left, right)
    rows = Dim(call.result_sizes()[0])
    bound.contracted += lead
    bound.results = [[rows, width]]
    bound.linear = ((0,),)
    if call["scale_grad_by_freq"]:  # by how often a row occurs, which a part of the lookups does not tell
        bound.whole += [rows, *lead]
    return bound


def embedding_bag_backward(call: Call) -> Bound:
    """The gradient of a table, each column by itself."""
    return Rule(f"b! d, n!, o!, m!, s!, {largest(call['maximum_indices'])} -> v! d").bind(call)


def margin_backward(call: Call) -> Bound:
    """The gradient of a loss, each example of a batch by itself, where there is a loss for each."""
    if call["reduction"] != 0 or len(call.dims[1]) != 2:
        return unsplit(call)
    others = "n, c!" if call.get("margin") is not None else "n c!, n c!"
    return Rule(f"n, n c!, {others} -> n c!").bind(call)


def diagonal_backward(call: Call) -> Bound:
    """A diagonal in its place, zeros elsewhere."""
    sizes = call.result_sizes()
    pair = {call.dim(call[name], len(sizes)) for name in ("dim1", "dim2")}
    free = iter(call.dims[0][:-1])
    bound = Bound(call.dims, [], whole=[call.dims[0][-1]])
    bound.results = [
        [unknown(bound, [size])[0] if at in pair else next(free) for at, size in enumerate(sizes)]
    ]
    return bound
