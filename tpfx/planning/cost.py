"""What a plan costs: seconds of ops and of collectives, and a price on the bytes that ranks hold.

    cost = CostModel(graph, ranks=8, topology=Topology())
    cost.seconds_of(cost.work(node, choice))          # on the most loaded rank, before splits are divided
    cost.seconds_of(cost.work(node, choice, rank=3))  # on rank 3, after that
    cost.collective("all_reduce", 2 << 20)            # for 2 MiB

`choose` minimises what is counted here, `estimate` adds it up for a plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from torch.fx import Graph, Node

from ..ir.annotations import Choice, bound_of, dims_of, is_weight, source_of
from ..ir.axes import Dim, same
from ..ir.layout import Layout, Partial, Replicate, Split
from ..ir.nodes import bytes_of, hint_of, is_tensor, result_tensors, tensor_nodes
from ..ir.op_dims import Bound
from .sizes import Sizes
from .topology import Topology


@dataclass(frozen=True)
class CostWeights:
    """What the chooser weighs beside the seconds that a `Topology` gives.

    Each was set by hand, so that transformers, tiny and huge and whatever the length of their example, are
    split as Megatron-LM splits them (Shoeybi et al., 2019); none is measured. They are ratios, but for
    `carried`.

    Attributes:
        price: holding the smallest weight matrix that matters, whole, costs as much as this many of the
            graph's largest all-reduces. Memory is so priced in seconds a byte, relative to the graph.
        negligible: the smallest matrices that together have this part of the bytes do not set that price.
        beside: what has less than this part of packed numbers beside it, scales say, sets no price either.
        small: a weight with at most this part of the elements of the matrix that sets it is small: a norm
            or a bias, say.
        small_price: a byte of a small weight costs this part of the price: it is not worth a collective.
        grouped: where more ranks than units share an axis (KV heads), holding a unit that others hold too
            costs this part of the price.
        uneven: what the fullest rank holds beyond the average counts this much.
        gathered: a byte that every rank holds of a gathered value, beyond its own shard, costs this part of
            the price.
        for_caller: an all-reduce of what the caller alone gets costs this many times the collective: a gather
            would do.
        gathered_weight: gathering a weight at each call costs this many times the collective.
        fused: an op that multiplies nothing costs this part of its seconds: a device compiler fuses it with
            others, and no collective is worth dividing it for.
        carried: seconds for each op that carries a partial sum on; of equal plans the one that sums early.
    """

    price: float = 3.0
    negligible: float = 0.005
    beside: float = 1 / 4
    small: float = 1 / 16
    small_price: float = 0.01
    grouped: float = 1 / 256
    uneven: float = 1 / 4
    gathered: float = 1.0
    for_caller: float = 1.1
    gathered_weight: float = 4.0
    fused: float = 1e-3
    carried: float = 1e-8


@dataclass(frozen=True)
class Work:
    """What an op does on a rank.

    Attributes:
        flops: floating-point operations, of products that are summed.
        moved: bytes of the operands and the results.
    """

    flops: float
    moved: float


class CostModel:
    """Seconds and prices for one graph.

    Args:
        graph: one of which the axes have been inferred.
        ranks: how many ranks share it.
        topology: how fast they are.
        weights: what counts beside seconds.
    """

    def __init__(
        self, graph: Graph, ranks: int, topology: Topology, weights: CostWeights | None = None
    ) -> None:
        self.ranks, self.topology, self.weights = ranks, topology, weights or CostWeights()
        self.sizes = Sizes(graph.nodes)
        self._nodes = list(graph.nodes)

    # Ops.

    def work(self, node: Node, choice: Choice, rank: int | None = None) -> Work:
        """What an op does where it is carried out by a choice.

        Args:
            node: an op that has a rule.
            choice: the layouts of its operands and results.
            rank: the rank that does it, where splits have been divided; None: the most loaded one.
        """
        bound = _bound(node)
        return Work(self._flops(bound, bound.products(), choice, rank), self._moved(node, choice, rank))

    def seconds_of(self, work: Work) -> float:
        """How long a rank computes, or moves bytes, whichever takes longer; without the launch.

        A launch is not counted because every op has one in every plan: `estimate` adds them.
        """
        return self.topology.op(work.flops, work.moved)

    def op_price(self, node: Node, choice: Choice) -> float:
        """What a choice costs the chooser, in seconds of the most loaded rank.

        Of an op that multiplies nothing that is a fraction of its seconds; there the rows of a table count as
        if they were multiplied by ones and zeros, so that dividing a lookup is worth as much as a product.
        """
        carried = self.weights.carried if choice.kind == "pending" else 0.0
        bound = _bound(node)
        if bound.products():
            return self.seconds_of(self.work(node, choice)) + carried
        summed = Work(self._flops(bound, bound.contracted, choice), self._moved(node, choice))
        return self.weights.fused * self.seconds_of(summed) + carried

    def _flops(self, bound: Bound, summed: Sequence[Dim], choice: Choice, rank: int | None = None) -> float:
        """A product and an addition for each element of a result and each index that it is summed over."""
        split = next((layout for layout in _layouts(choice) if isinstance(layout, Split)), Replicate())
        count = 0
        for dims in bound.results:
            gone = [dim for dim in summed if not any(same(dim, kept) for kept in dims)]
            inside = prod(self.sizes.extent(dim, split, rank) for dim in gone)
            count += 2 * self.sizes.elements(dims, split, rank) * inside if gone else 0
        return self._on(rank, count, split)

    def _moved(self, node: Node, choice: Choice, rank: int | None = None) -> float:
        """Bytes of operands, each as often as it occurs, and of results."""
        bound = _bound(node)
        values = [*(operand.meta["val"] for operand in tensor_nodes(node)), *result_tensors(node)]
        tensors = zip(values, (*bound.operands, *bound.results), _layouts(choice), strict=True)
        return sum(
            self._on(rank, self.sizes.elements(dims, layout, rank) * value.element_size(), layout)
            for value, dims, layout in tensors
        )

    def _on(self, rank: int | None, count: int, layout: Layout) -> float:
        """What has been counted on a rank; of what was counted whole, the part of the most loaded rank."""
        return count * (layout.share(self.ranks) if rank is None and isinstance(layout, Split) else 1.0)

    # Collectives.

    def collective(self, kind: str, size: int) -> float:
        """Seconds of a collective.

        Args:
            kind: "all_reduce", "all_gather", or "gather" (for the caller alone).
            size: bytes of the whole value.
        """
        one = self.topology
        seconds = {"all_reduce": one.all_reduce, "all_gather": one.all_gather, "gather": one.gather}[kind]
        return seconds(size, self.ranks)

    def whole(self, node: Node, layout: Layout) -> float:
        """What it costs to make a value whole that lies split, or as a partial sum, on every rank."""
        size = bytes_of(node.meta["val"])
        if isinstance(layout, Partial):
            return self.collective("all_reduce", size)
        dearer = self.weights.gathered_weight if is_weight(node) else 1.0
        more = size * (1 - 1 / self.ranks)  # what every rank then holds beyond its shard
        return dearer * self.collective("all_gather", size) + self.weights.gathered * self.price * more

    # Memory.

    @cached_property
    def price(self) -> float:
        """Seconds a resident byte: such that whole weight matrices are dearer than collectives."""
        sums = [node for node in self._nodes if (b := bound_of(node)) and b.contracted and is_tensor(node)]
        largest = max((bytes_of(node.meta["val"]) for node in sums), default=0)
        return self.weights.price * self.collective("all_reduce", largest) / self._small_matrix[0]

    def resident(self, weight: Node, layout: Layout) -> float:
        """What a weight costs by the bytes that ranks hold of it on average, in seconds."""
        size = bytes_of(weight.meta["val"])
        small = _elements(weight) <= self.weights.small * self._small_matrix[1]
        return self.price * (self.weights.small_price if small else 1.0) * size * self._held(weight, layout)

    def _held(self, weight: Node, layout: Layout) -> float:
        """The part of a weight that a rank is charged for.

        Where ranks are more than the units of an axis, groups of them hold the same unit; what shares their
        group is split among them, and at least as large, so that holding a unit again is no great harm.
        Units that do not divide evenly, and groups, are charged as held on average, and a part of what the
        fullest rank holds beyond that: other layers may make up for it, or not.
        """
        if not isinstance(layout, Split):
            return 1.0
        share, units = layout.mean_share(dims_of(weight), self.ranks), int(layout.axes[0].size)
        if len(layout.axes) == 1:
            return share + self.weights.uneven * (layout.share(self.ranks) - share)
        even, fullest = 1 / self.ranks, 1 / (units * (self.ranks // units))
        least = even + self.weights.uneven * (fullest - even)
        return least + self.weights.grouped * max(0.0, share - least)

    @cached_property
    def _small_matrix(self) -> tuple[int, int]:
        """Bytes and elements of the smallest matrix that matters: all below it together are negligible."""
        weights = [node for node in self._nodes if is_weight(node) and is_tensor(node)]
        trained = [node for node in weights if source_of(node).kind == "parameter"]  # buffers are tables
        matrices = [node for node in trained or weights if node.meta["val"].dim() > 1] or trained or weights
        packed: dict[str, int] = {}  # by owner, the bytes of the largest weight of packed numbers
        for node in filter(_is_packed, matrices):
            packed[_owner(node)] = max(_bytes(node), packed.get(_owner(node), 0))
        sizes = sorted(
            (_bytes(node), _elements(node))
            for node in matrices
            if _bytes(node) >= self.weights.beside * packed.get(_owner(node), 0)
        )
        return _first_above(sizes, self.weights.negligible * sum(size for size, _ in sizes))


def _owner(weight: Node) -> str:
    """The module, or the weight made of others, of which it is one: `q_proj`, or `q_proj.weight`."""
    return source_of(weight).name.rpartition(".")[0]


def _is_packed(weight: Node) -> bool:
    """Whether a weight's numbers are quantized: integers, or floats of a byte."""
    dtype = weight.meta["val"].dtype
    return dtype.itemsize == 1 or not (dtype.is_floating_point or dtype.is_complex)


def _bytes(weight: Node) -> int:
    return bytes_of(weight.meta["val"])


def _elements(weight: Node) -> int:
    return hint_of(weight.meta["val"].numel())


def _first_above(sizes: Iterable[tuple[int, int]], limit: float) -> tuple[int, int]:
    """The first of some bytes and elements with whose bytes the sum passes a limit; 1 where none does."""
    total = 0
    for size, elements in sizes:
        total += size
        if total > limit:
            return size, elements
    return 1, 1


def _bound(node: Node) -> Bound:
    bound = bound_of(node)
    assert bound is not None, f"{node} has no rule, and no choice"
    return bound


def _layouts(choice: Choice) -> tuple[Layout, ...]:
    return (*choice.operands, *choice.results)
