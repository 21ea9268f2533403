"""What a rule says of one call of an op: the dimensions of its tensors, and which of them may be split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from ..torch_internals.fake import with_exact_divisions
from .axes import Dim, Size, same, unify
from .nodes import arguments, result_tensors, tensor_nodes

Dims = list[Dim]


@dataclass
class Bound:
    """What a rule says of one call: the dimensions of its tensors and which of them may be split.

    Attributes:
        operands: the dimensions of each tensor operand, in the order of `Call.operands`.
        results: the dimensions of each tensor result.
        whole: dimensions that every rank must hold whole.
        contracted: dimensions that vanish by a reduction; split along one, a rank's result is a partial sum.
        matched: pairs that are one dimension; a pair that inference could not bring together must be whole.
        linear: sets of operands; if those are partial sums (and no other is), so is the result.
        reduce: how partial sums of a contraction are joined.
        each: whether each result sums over what it does not have of what is contracted; others then have it.
    """

    operands: list[Dims]
    results: list[Dims]
    whole: list[Dim] = field(default_factory=list)
    contracted: list[Dim] = field(default_factory=list)
    matched: list[tuple[Dim, Dim]] = field(default_factory=list)
    linear: tuple[tuple[int, ...], ...] = ()
    reduce: str = "sum"
    each: bool = False

    def match(self, left: Dim, right: Dim) -> Dim:
        """Say that two dimensions are one."""
        if not unify(left, right):
            self.matched.append((left, right))
        return left

    def products(self) -> list[Dim]:
        """What is summed over of products of two operands, as k in `m k, k n -> m n`."""
        return [
            dim
            for dim in self.contracted
            if sum(any(same(dim, other) for other in dims) for dims in self.operands) > 1
        ]

    def settle(self) -> None:
        """Once inference is over: what could not be matched must be whole."""
        for left, right in self.matched:
            if not same(left, right):
                self.whole += [left, right]
        self.matched.clear()


class Call:
    """One call of an op in a graph: arguments by name, tensor operands, and the sizes of its results."""

    def __init__(self, node: Node, dims_of: Callable[[Node], Dims], size: Callable[[Any], Size]) -> None:
        self.node = node
        self.size = size
        self.args = arguments(node)
        self.operands: list[Node] = list(tensor_nodes(node))
        self.dims: list[Dims] = [dims_of(operand) for operand in self.operands]

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the schema, or the default where this overload has none."""
        return self.args.get(name, default)

    @property
    def results(self) -> list[torch.Tensor]:
        """The fake tensors that the op returns, those of a tuple or list one after the other."""
        return result_tensors(self.node)

    def result_sizes(self, index: int = 0) -> list[Size]:
        """The sizes of one result."""
        return [self.size(extent) for extent in self.results[index].shape]

    def new(self, size: Size) -> Dim:
        """A dimension of which nothing is known but its size."""
        return Dim(size)

    def dim(self, index: int, rank: int | None = None) -> int:
        """A dimension's index, counted from the front."""
        return index % max(1, len(self.dims[0]) if rank is None else rank)

    def same_size(self, left: Size, right: Size) -> bool:
        """Whether two sizes are provably equal."""
        if left == right:
            return True
        varying = next((extent for extent in self._extents() if isinstance(extent, torch.SymInt)), 0)
        return bool(with_exact_divisions(varying, left) == with_exact_divisions(varying, right))

    def _extents(self) -> Iterator[Any]:
        for tensor in (*self.results, *(operand.meta["val"] for operand in self.operands)):
            yield from tensor.shape
