"""What an op does with dimensions: rules as data, and what a rule says of one call.

A rule is a string over factors, in the manner of einops and Shardy:

    "b (g r) q! e!, b g k! e!, b g k! f! -> b (g r) q f"

One group of dimensions for each tensor argument of the op's schema, in order, and one for each result. The
same letter is the same dimension; `(g r)` is a product, major first; `!` must be whole on every rank; `...`
stands for any leading dimensions, broadcast as PyTorch does. A factor that no result has is contracted: each
rank's result is then a partial one. Where a rule depends on more than shapes, it is a function of the `Call`
that returns a `Bound`.

>>> Rule("m k, k n -> m n", linear=((0,), (1,)))      # a partial sum may flow through either operand
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache

from ..ir.axes import Dim, Size, axes, find, product, quotient
from ..ir.nodes import is_tensor
from ..ir.op_dims import Bound, Call, Dims
from ..torch_internals.fx import OpOverload


class Lowering(Enum):
    """What writes the nodes of an op into a rank's graph, where a call of the op on its shards is not enough.

    `lowering.ops` implements every one of them; the rows of the table of ops name them.
    """

    BY_BLOCK = "by_block"  # with the scales of the blocks in which the rank's numbers lie
    CONVOLUTION = "convolution"  # with this rank's number of groups
    EMBEDDING = "embedding"  # looks up the rows that the rank owns, zeros for the others
    EMBEDDING_BACKWARD = "embedding_backward"  # the gradient of the rows that the rank owns
    EXTREME = "extreme"  # of no elements, what loses against every other
    GATHER = "gather"  # the elements that the rank owns, zeros for the others
    GROUPED_MM = "grouped_mm"  # rows padded to 16 bytes
    GROUP_NORM = "group_norm"  # with this rank's number of groups and channels
    LINEAR = "linear"  # the fastest kernel of the device
    MEAN = "mean"  # the rank's sum, by the size of the whole dimension
    PACKED_LINEAR = "packed_linear"  # with the shape of the rank's shard of the packed matrix
    SCATTER = "scatter"  # writes what falls into the rank's shard
    SELECT = "select"  # the index in the rank's shard
    SLICE = "slice"  # the limits in the rank's shard
    SLICE_BACKWARD = "slice_backward"  # the limits and the shape of the rank's shard
    SPLIT = "split"  # the sizes of the pieces in the rank's shard
    SQUEEZE = "squeeze"  # what is of size 1 in the whole, not what is so on the rank
    UNPACKED = "unpacked"  # with the shape of the rank's shard; of nothing, nothing


@dataclass(frozen=True)
class Rule:
    """A row of the table of ops.

    Args:
        pattern: a string over factors, or a function from a `Call` to a `Bound`.
        linear: sets of tensor operands through which a partial sum may flow.
        reduce: how the partial results of a contracted factor are joined.
        each: whether each result sums over the factors that it does not have, as gradients do.
        shape: the name of the argument that gives the shape of the result; a rank is given its own.
        lower: what replaces the call on a rank, where calling the op on shards is not enough.
        pad_empty_shards: whether the op refuses tensors without elements, or gives results of another shape
            for them: a rank that has nothing calls it on zeros, and drops what comes out.
        contiguous: whether the op needs contiguous operands, or takes them to be so unasked.
        dense_rows: the operands, by name, whose last dimension the op takes to lie densely, unasked.
        memory_order: the operands that the op reads in one memory order whatever their strides are, by name:
            their dimensions, the slowest first. They are laid out so on every rank, also where it runs whole.

    Raises:
        TypeError: `lower` is no `Lowering`.
    """

    pattern: str | Callable[[Call], Bound]
    linear: tuple[tuple[int, ...], ...] = ()
    reduce: str = "sum"
    each: bool = False
    shape: str | None = None
    lower: Lowering | None = None
    pad_empty_shards: bool = False
    contiguous: bool = False
    dense_rows: tuple[str, ...] = ()
    memory_order: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        if self.lower not in {None, *Lowering}:
            raise TypeError(f"lower={self.lower!r} of the rule {self.pattern!r} is none of {list(Lowering)}")

    def bind(self, call: Call, sizes: Mapping[str, int] | None = None) -> Bound:
        """What this rule says of a call; `sizes` are those of factors that no operand tells."""
        bound = (
            self.pattern(call)
            if callable(self.pattern)
            else _Binder(parse(self.pattern), call, sizes or {}).bind(self.reduce, self.each)
        )
        if not bound.linear:
            bound.linear = self.linear
        return bound


@dataclass(frozen=True)
class Term:
    """One dimension in a rule: a factor or a product of factors; no factors: `...`."""

    factors: tuple[str, ...]
    whole: frozenset[str]


@dataclass(frozen=True)
class Pattern:
    """A parsed rule."""

    operands: tuple[tuple[Term, ...], ...]
    results: tuple[tuple[Term, ...], ...]

    @property
    def whole(self) -> frozenset[str]:
        """Factors that must be whole."""
        return frozenset(
            name for terms in (*self.operands, *self.results) for term in terms for name in term.whole
        )


@cache
def parse(text: str) -> Pattern:
    """Read a rule's string."""
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"a rule needs '->': {text!r}")
    return Pattern(tuple(map(_terms, left.split(","))), tuple(map(_terms, right.split(","))))


def _terms(text: str) -> tuple[Term, ...]:
    tokens = re.findall(r"\(([^)]*)\)|(\.\.\.)|([\w!]+)", text)
    return tuple(Term((), frozenset()) if dots else _term(group or name) for group, dots, name in tokens)


def _term(text: str) -> Term:
    names = text.split()
    return Term(
        tuple(n.rstrip("!") for n in names), frozenset(n.rstrip("!") for n in names if n.endswith("!"))
    )


class _Binder:
    """Binds the factors of one pattern to the dimensions of one call."""

    def __init__(self, pattern: Pattern, call: Call, sizes: Mapping[str, int]) -> None:
        self.pattern, self.call = pattern, call
        self.known: dict[str, Dim] = {name: Dim(size) for name, size in sizes.items()}
        self.bound = Bound(call.dims, [])

    def bind(self, reduce: str, each: bool) -> Bound:
        self.bound.reduce, self.bound.each = reduce, each
        pairs = [pair for pair in self._pairs() if find(pair[1]).size != 1]
        # Products last, and those of which a factor is told by another after that one.
        for term, dim in sorted(pairs, key=lambda pair: len(pair[0].factors)):
            if self._open(term) < 2:
                self._meet(term, dim)
        for term, dim in pairs:
            if len(term.factors) > 1:
                self._meet(term, dim)
        for index in range(len(self.call.results)):
            self.bound.results.append(self._result(index))
        self._settle_factors(each)
        return self.bound

    def _settle_factors(self, each: bool) -> None:
        """Which factors are contracted, and which must be whole."""
        if each and len(self.bound.results) > len(self.pattern.results):
            raise ValueError(f"a rule for gradients describes every result: {self.call.node.target}")
        for name, dim in self.known.items():
            kept = self._results_of(name)
            if name in self.pattern.whole:
                self.bound.whole.append(dim)
            elif (not kept and not name.startswith(".")) or (each and len(kept) < len(self.bound.results)):
                self.bound.contracted.append(dim)
            if (not kept and name.startswith(".")) or any(_lost(dim, self.bound.results[i]) for i in kept):
                self.bound.whole.append(dim)  # a result that should have it could not be given it

    def _results_of(self, name: str) -> list[int]:
        """The results that have a factor; one of `...` if they have leading dimensions."""
        return [
            index
            for index, terms in enumerate(self.pattern.results[: len(self.bound.results)])
            if any(name in term.factors or (name.startswith(".") and not term.factors) for term in terms)
        ]

    def _pairs(self) -> Iterator[tuple[Term, Dim]]:
        for terms, dims in zip(self._operand_terms(), self.call.dims, strict=False):
            yield from zip(_spread(terms, len(dims)), dims, strict=True)

    def _operand_terms(self) -> list[tuple[Term, ...]]:
        """The pattern's groups for the tensor arguments that are given."""
        if not isinstance(self.call.node.target, OpOverload):
            return list(self.pattern.operands[: len(self.call.operands)])
        schema = [a.name for a in self.call.node.target._schema.arguments if "Tensor" in str(a.type)]
        given = [
            terms
            for name, terms in zip(schema, self.pattern.operands, strict=False)
            if is_tensor(self.call[name])
        ]
        for dims in self.call.dims[len(given) :]:  # the rule does not speak of them
            self.bound.whole += dims
        return given

    def _meet(self, term: Term, dim: Dim) -> None:
        if len(term.factors) == 1:
            name = term.factors[0]
            self.known[name] = self.bound.match(self.known[name], dim) if name in self.known else dim
        elif (whole := self._product(term, find(dim).size)) is not None:
            self.bound.match(dim, whole)
        else:
            self.bound.whole += [dim, *(self.known[name] for name in term.factors if name in self.known)]

    def _open(self, term: Term) -> int:
        """How many factors have no dimension yet."""
        return sum(name not in self.known for name in term.factors)

    def _product(self, term: Term, size: Size) -> Dim | None:
        """The product of factors of which at most one has no size yet."""
        unknown = [name for name in term.factors if name not in self.known]
        rest: Size | None = size
        for name in term.factors:
            if name in self.known and rest is not None:
                rest = quotient(rest, find(self.known[name]).size)
        if rest is None or len(unknown) > 1 or (not unknown and rest != 1):
            return None
        if unknown:
            self.known[unknown[0]] = Dim(rest)
        return product(self.known[name] for name in term.factors)

    def _result(self, index: int) -> Dims:
        sizes = self.call.result_sizes(index)
        if index >= len(self.pattern.results):
            return self._unknown(sizes)
        pairs = list(zip(_spread(self.pattern.results[index], len(sizes)), sizes, strict=True))
        if any(len(term.factors) > 1 and size != 1 and self._open(term) for term, size in pairs):
            return self._unknown(sizes)
        dims = []
        for term, size in pairs:
            dim = product(self.known[n] for n in term.factors if n in self.known)
            dims.append(dim if find(dim).size == size else self._unknown([size])[0])
        return dims

    def _unknown(self, sizes: Sequence[Size]) -> Dims:
        dims = [Dim(size) for size in sizes]
        self.bound.whole += dims
        return dims


def _lost(dim: Dim, result: Dims) -> bool:
    """Whether a result has nothing of a dimension."""
    return axes(dim).isdisjoint(axis for other in result for axis in axes(other))


def _spread(terms: Sequence[Term], rank: int) -> list[Term]:
    """Terms for each of `rank` dimensions; those that `...` stands for are numbered from the right."""
    spread: list[Term] = []
    missing = rank - (len(terms) - 1)
    for term in terms:
        if term.factors:
            spread.append(term)
        else:
            spread += [Term((f".{missing - 1 - position}",), frozenset()) for position in range(missing)]
    return spread
