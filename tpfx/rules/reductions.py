"""Rules of ops that contract dimensions or work along them: products, attention, norms, sums, sorts."""

from __future__ import annotations

from ..ir.axes import Dim, find, has_intervals, product, quotient
from ..ir.nodes import is_tensor
from ..ir.op_dims import Bound, Call, Dims
from .pointwise import floating
from .rule import Rule
from .whole_dims import checked, unknown, unsplit


def linear(call: Call) -> Bound:
    """x @ w.T: a bias would be added to every partial sum, so with one what is contracted must be whole."""
    if call.get("bias") is not None:
        return Rule("... k!, n k!, n -> ... n").bind(call)
    return Rule("... k, n k -> ... n", linear=((0,), (1,))).bind(call)


def baddbmm(call: Call) -> Bound:
    """A batch of products added to what broadcasts to it."""
    added = " ".join(["b", "m", "n"][3 - len(call.dims[0]) :])
    return Rule(f"{added}, b m k!, b k! n -> b m n").bind(call)


def solve(call: Call) -> Bound:
    """A system of equations for each right side, which are columns or, from the right, rows."""
    sides = "... m! n" if call["left"] else "... n m!"
    return Rule(f"... m! k!, {sides} -> {sides}", linear=((1,),)).bind(call)


def matrices(call: Call) -> Bound:
    """Whole matrices, the last two dimensions of the first operand, and what is made of them, one by one."""
    matrix = call.dims[0][-2:]
    lead = call.dims[0][:-2]
    bound = Bound(call.dims, [], whole=list(matrix))
    for dims in call.dims[1:]:
        # A vector for each matrix, or its pivots; what else has less dimensions is broadcast.
        if len(dims) - len(lead) not in (1, 2) or not _of_matrices(dims, call.dims[0]):
            return unsplit(call)
        for left, right in zip(lead, dims, strict=False):
            bound.match(left, right)
        bound.whole += dims[len(lead) :]
    for index in range(len(call.results)):
        sizes = call.result_sizes(index)
        made = [] if sizes == [0] else lead  # what is not asked for is empty
        bound.results.append(checked(bound, call, [*made, *unknown(bound, sizes[len(made) :])], index))
    return bound


def _of_matrices(dims: Dims, matrices: Dims) -> bool:
    """Whether an operand has one matrix for each of the first operand, or one vector as long as a side."""
    sizes, others = ([find(dim).size for dim in given] for given in (dims, matrices))
    return sizes[: len(others) - 2] == others[:-2] and (len(sizes) == len(others) or sizes[-1] in others[-2:])


def attention(call: Call) -> Bound:
    """Heads by themselves; several query heads may share one of the keys' and values'."""
    query, key = find(call.dims[0][1]).size, find(call.dims[1][1]).size
    heads, group = ("h", "h") if call.same_size(query, key) else ("h", "1") if key == 1 else ("(g r)", "g")
    mask = " ".join(["b", heads, "q!", "k!"][4 - len(call.dims[3]) :]) if len(call.dims) > 3 else ""
    keys = f"b {group} k! e!, b {group} k! f!, {mask}"
    sums = f"b {heads} q! 1" if call.results[1].dim() == 4 else f"b {heads} q!"  # cuDNN keeps the dimension
    return Rule(f"b {heads} q! e!, {keys} -> b {heads} q! f!, {sums}").bind(call)


def flex_attention(call: Call) -> Bound:
    """Examples and heads by themselves, whatever the functions of scores and masks make of them.

    What these look into is whole: a rank tells them which example and which head of the whole it has.
    """
    terms = flex_terms(call)
    sums = "".join(f", b {terms['heads']} q!" for _ in call.results[1:])
    return Rule(f"{terms['operands']} -> b {terms['heads']} q! f!{sums}").bind(call)


def flex_terms(call: Call) -> dict[str, str]:
    """The operands of an attention by functions of scores in a rule, and the heads of queries and keys."""
    batch, query = (find(dim).size for dim in call.dims[0][:2])
    key = find(call.dims[1][1]).size
    heads, group = ("h", "h") if call.same_size(query, key) else ("h", "1") if key == 1 else ("(g r)", "g")
    known = {"query": f"b {heads} q! e!", "key": f"b {group} k! e!", "value": f"b {group} k! f!"}
    known |= dict.fromkeys(("out", "grad_out"), f"b {heads} q! f!")
    known |= dict.fromkeys(("logsumexp", "grad_logsumexp"), f"b {heads} q!")
    terms: list[str] = []
    for name, given in call.args.items():
        for tensor in filter(is_tensor, given if isinstance(given, (tuple, list)) else (given,)):
            sizes, at = [call.size(extent) for extent in tensor.meta["val"].shape], len(terms)
            each = ("b", batch), (heads, query)
            blocks = [term for (term, whole), size in zip(each, sizes, strict=False) if size in (1, whole)]
            led = blocks if name == "block_mask" and len(blocks) == len(each) else []
            inner = [f"o{at}_{index}!" for index in range(len(led), len(sizes))]
            terms.append(known.get(name) or " ".join([*led, *inner]))
    return {"heads": heads, "group": group, "operands": ", ".join(terms)}


def grouped_mm(call: Call) -> Bound:
    """Each expert's tokens, which lie one after the other, by that expert's matrix."""
    ranks = [len(dims) for dims in call.dims]
    if ranks == [2, 2, 1]:  # the gradient of the matrices
        return Rule("k t!, t! n, e! -> e k n", linear=((0,), (1,))).bind(call)
    if ranks != [2, 3, 1]:
        return unsplit(call)
    return Rule("t! k, e! k n, e! -> t! n", linear=((0,), (1,))).bind(call)


def norm(call: Call) -> Bound:
    """The last dimensions normalised together, whole."""
    count = len(call["normalized_shape"])
    last, ones = " ".join(f"d{index}!" for index in range(count)), " ".join("1" * count)
    return Rule(f"... {last}, {last}, {last} -> ... {last}, ... {ones}, ... {ones}").bind(call)


def group_norm(call: Call) -> Bound:
    """Groups of channels by themselves, each normalised together with all that slides."""
    batch, channels, *slides = call.dims[0]
    inside = quotient(find(channels).size, call["group"])
    assert inside is not None, "channels are a multiple of the groups"
    groups, inner = Dim(call["group"]), Dim(inside)
    bound = Bound(call.dims, [list(call.dims[0]), [batch, groups], [batch, groups]])
    for vector in (channels, *(dims[0] for dims in call.dims[1:])):
        bound.match(vector, product([groups, inner]))
    bound.whole += [inner, *slides]
    return bound


def batch_norm(call: Call) -> Bound:
    """Channels by themselves; batches too, where their statistics are not taken from the input."""
    batch = "n!" if call.get("training", False) else "n"
    slides = " ".join(f"s{index}!" for index in range(len(call.dims[0]) - 2))
    empty = enumerate(
        value.numel() == 0 for value in call.results[1:]
    )  # on CPU, statistics that none asks for
    vectors = "".join(f", e{at}!" if none else ", c" for at, none in empty)
    return Rule(f"{batch} c {slides}, c, c, c, c -> {batch} c {slides}{vectors}").bind(call)


def along(call: Call) -> Bound:
    """Some dimensions of the first operand are worked along and whole, the others are free."""
    bound = Bound(call.dims, [])
    touched = _touched(call)
    bound.whole += [dim for index, dim in enumerate(call.dims[0]) if index in touched]
    bound.whole += [dim for dims in call.dims[1:] for dim in dims]
    for index in range(len(call.results)):
        bound.results.append(checked(bound, call, list(call.dims[0]), index))
    return bound


def along_gone(call: Call) -> Bound:
    """Some dimensions of the operand must be whole and are gone, or of size 1, in the results."""
    bound = Bound(call.dims, [])
    touched = _touched(call)
    bound.whole += [dim for index, dim in enumerate(call.dims[0]) if index in touched]
    for index in range(len(call.results)):
        bound.results.append(checked(bound, call, _reduced(call, touched), index))
    return bound


def reduction(call: Call) -> Bound:
    """Some dimensions are contracted."""
    touched = _touched(call)
    bound = Bound(call.dims, [])
    name = str(call.node.target)
    for dim in (dim for index, dim in enumerate(call.dims[0]) if index in touched):
        # A rank could not tell by what number to divide its sum over a size that varies.
        (bound.whole if "mean" in name and not has_intervals(dim) else bound.contracted).append(dim)
    if "amax" in name or "amin" in name:
        bound.reduce = "max" if "amax" in name else "min"
    elif floating(call):
        bound.linear = ((0,),)
    bound.results = [checked(bound, call, _reduced(call, touched))]
    return bound


def cumsum(call: Call) -> Bound:
    """Sums along one dimension; linear unless they are rounded to integers."""
    bound = along(call)
    if floating(call):
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
