"""Ops that are alike, as those of layers are: the same choices at the same cost, on axes of their own.

alike = AlikeOps(splits, sizes)
likeness, own = alike.of(node, partials)     # equal likenesses: equal choices, with `own` splits in place
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence, Set

from torch.fx import Node

from ..ir.annotations import bound_of
from ..ir.axes import Dim, Product, find
from ..ir.layout import Split
from ..ir.nodes import bytes_of, is_tensor, result_tensors, tensor_nodes
from ..ir.splits import Splits
from ..rules import is_random
from .sizes import Sizes


class AlikeOps:
    """What tells ops from those that are alike, in one graph.

    Args:
        splits: those that are considered.
        sizes: of the graph.
    """

    def __init__(self, splits: Splits, sizes: Sizes) -> None:
        self.splits, self.sizes = splits, sizes

    def of(self, node: Node, partials: Set[Node]) -> tuple[Hashable, list[Split]]:
        """All that the choices for an op depend on, and their cost, but for which axes there are.

        Args:
            node: an op that has a rule.
            partials: the values that some choice leaves as partial sums.

        Returns:
            That, and the splits that concern the op, in an order that is the same for ops that are alike.
        """
        bound = bound_of(node)
        assert bound is not None
        shapes = _Shapes(self.sizes)
        own = self.splits.of([*bound.operands, *bound.results])
        operands = list(tensor_nodes(node))
        values = [*(operand.meta["val"] for operand in operands), *result_tensors(node)]
        told = (
            tuple(map(shapes.of, (*bound.operands, *bound.results, bound.whole, bound.contracted))),
            tuple(shapes.of(split.axes) for split in own),
            (len(bound.results), bound.linear, bound.reduce, bound.each),
            tuple(operand in partials for operand in operands),
            tuple(value.element_size() for value in values),
            (is_random(node), bytes_of(node.meta["val"]) if is_tensor(node) else None),
        )
        return told, own


class _Shapes:
    """Dimensions as numbers, in the order in which they are met; when first met, also what each is."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self._numbers: dict[Dim, int] = {}

    def of(self, dims: Sequence[Dim]) -> Hashable:
        """The dimensions of a tensor."""
        return tuple(map(self._one, dims))

    def _one(self, dim: Dim) -> Hashable:
        root = find(dim)
        known = self._numbers.get(root)
        if known is not None:
            return known
        self._numbers[root] = len(self._numbers)
        varies = not isinstance(root.size, int)
        size = -1 - self.sizes.number(root.size) if varies else root.size
        if root.form is None:
            return (size,)
        return size, isinstance(root.form, Product), self.of(root.form.parts)
