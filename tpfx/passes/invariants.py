"""What must hold of a graph after each stage of the compiler: a table, one line an invariant.

    check("insert", INSERTED, graph, ranks=2)      # raises ShardingError at the first node that breaks one

A violation is a bug of a pass, never of a model. Planning runs all of these, each in one walk over the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.fx import Graph, Node

from ..errors import ShardingError
from ..ir.annotations import (
    bound_of,
    choice_of,
    dims_of,
    gradients_in,
    has_dims,
    layout_of,
    shards_of,
    source_of,
)
from ..ir.axes import same
from ..ir.layout import Layout, Partial, Replicate, Split
from ..ir.nodes import (
    is_getitem,
    is_mutable,
    is_tensor,
    producer_of,
    result_index,
    result_tensors,
    size_of,
    tensor_nodes,
)
from ..ir.provenance import module_path, origin_of
from ..ir.resharding import all_gather, all_reduce, shard, to_partial
from ..kernels.collectives import BROADCASTS, gather_shards
from ..planning.choices import allows
from ..rules import inner_draws, may_draw
from .choose import is_decided
from .divide import splits_in_use
from .normalize import has_bias, is_transposed_product, is_view_by_size
from .simplify import arguments_key, nothing_done, removable

c10d = torch.ops._c10d_functional
Subject = TypeVar("Subject")
Violation = tuple[Node, str]  # the node that breaks an invariant, and how


@dataclass(frozen=True)
class Invariant(Generic[Subject]):
    """A statement about a graph, or about the graphs of all ranks.

    Attributes:
        says: the statement, in words.
        violations: the nodes of a graph for so many ranks that break it.
    """

    says: str
    violations: Callable[[Subject, int], Iterator[Violation]]


def check(stage: str, invariants: Sequence[Invariant[Subject]], subject: Subject, ranks: int) -> None:
    """Check what must hold after a stage.

    Raises:
        ShardingError: it does not; names the stage, the invariant and the first node that breaks it.
    """
    for invariant in invariants:
        for node, how in invariant.violations(subject, ranks):
            path = module_path(node)
            where = f"{node.name} (of {path})" if path else node.name
            raise ShardingError(
                f"after {stage}, it does not hold that {invariant.says}: {where} {how}; this is a bug of a "
                "pass of tpfx, not of the model: please report it"
            )


def _ill_formed(graph: Graph, ranks: int) -> Iterator[Violation]:
    try:
        graph.lint()
    except (RuntimeError, ValueError) as error:
        yield graph.output_node(), f"ends a graph of which it says: {str(error).splitlines()[0]}"


# After normalize.


def _biased(graph: Graph, ranks: int) -> Iterator[Violation]:
    return ((node, "adds its bias itself") for node in graph.nodes if has_bias(node))


def _unfused(graph: Graph, ranks: int) -> Iterator[Violation]:
    return ((node, "is an mm") for node in graph.nodes if is_transposed_product(node))


def _views(graph: Graph, ranks: int) -> Iterator[Violation]:
    return ((node, f"is {node.target}") for node in graph.nodes if is_view_by_size(node))


# After simplify.


def _idle(graph: Graph, ranks: int) -> Iterator[Violation]:
    returned = set(graph.output_node().all_input_nodes)
    for node in graph.nodes:
        source = nothing_done(node)
        if source is not None and node not in returned:
            yield node, f"is {source.name}"


def _repeated(graph: Graph, ranks: int) -> Iterator[Violation]:
    alike: dict[Hashable, list[Node]] = {}
    for node in removable(graph):
        alike.setdefault((node.target, *node.all_input_nodes), []).append(node)
    for nodes in alike.values():
        known: dict[Hashable, Node] = {}
        for node in nodes if len(nodes) > 1 else ():
            first = known.setdefault(arguments_key(node), node)
            if first is not node:
                yield node, f"repeats {first.name}"


# After infer_axes.


def _unknown_dims(graph: Graph, ranks: int) -> Iterator[Violation]:
    for node in graph.nodes:
        if not is_tensor(node):
            continue
        if not has_dims(node):
            yield node, "has none"
            continue
        sizes = [dim.size for dim in dims_of(node)]
        extents = [extent if type(extent) is int else size_of(extent) for extent in node.meta["val"].shape]
        if sizes != extents:
            yield node, f"has dimensions of sizes {sizes} and is of shape {extents}"


def _unbound(graph: Graph, ranks: int) -> Iterator[Violation]:
    for node in graph.nodes:
        if node.op != "call_function" or is_getitem(node):
            continue
        operands, results = len(list(tensor_nodes(node))), len(result_tensors(node))
        bound = bound_of(node)
        if bound is None:
            if operands or results:
                yield node, "has no rule bound to it"
        elif bound.matched or (len(bound.operands), len(bound.results)) != (operands, results):
            yield node, "is bound to a rule that is for other operands or results, or is not settled"


def _other_gradients(graph: Graph, ranks: int) -> Iterator[Violation]:
    for gradient, weight in _gradients(graph):
        pairs = zip(dims_of(gradient), dims_of(weight), strict=True)
        if not all(same(left, right) for left, right in pairs):
            yield gradient, f"has other axes than {weight.name}"


def _gradients(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """The gradients that a graph returns, each with the input that it is of."""
    output = graph.output_node()
    results: Sequence[Node] = output.args[0]  # type: ignore[assignment]
    return ((results[at], weight) for at, weight in gradients_in(output).items())


# After choose.


def _undecided(graph: Graph, ranks: int) -> Iterator[Violation]:
    return ((node, "has none") for node in graph.nodes if is_decided(node) and choice_of(node) is None)


def _forbidden(graph: Graph, ranks: int) -> Iterator[Violation]:
    for node in graph.nodes:
        bound, choice = bound_of(node), choice_of(node)
        if bound is not None and choice is not None and not allows(node, choice):
            yield node, f"is carried out as {choice}"


def _other_layouts(graph: Graph, ranks: int) -> Iterator[Violation]:
    for node in graph.nodes:
        choice = choice_of(node)
        if choice is None or not is_tensor(node):
            continue
        given: Layout = choice.results[0]
        if is_getitem(node):
            producer = choice_of(producer_of(node))
            given = producer.results[result_index(node)] if producer is not None else given
        if layout_of(node) != given or choice.results[0] != given:
            yield node, f"is {layout_of(node)}, and the choice gives {given}"


# After divide.


def _undivided(graph: Graph, ranks: int) -> Iterator[Violation]:
    seen: set[Split] = set()
    for node in graph.nodes:
        for split in splits_in_use(node):
            if split not in seen and not _covers(split, ranks):
                yield node, f"is in {split}, divided as {split.rank_intervals}"
            seen.add(split)


def _covers(split: Split, ranks: int) -> bool:
    """Whether the ranks' intervals follow one another, and together are every unit of the axes, once."""
    outer, inner = split.axes[0], split.units // int(split.axes[0].size)
    ends = 0
    for box in split.rank_intervals:
        if box.keys() != set(split.axes):
            return False
        (start, stop), rest = box[outer], [box[axis] for axis in split.axes[1:]]
        low, high = start * inner, stop * inner
        if rest and rest[0] != (0, inner):
            (first, last), only_one = rest[0], stop == start + 1
            low, high = low + first, (low + last if only_one and 0 <= first <= last <= inner else -1)
        if high < low or (high > low and low != ends):
            return False
        ends = max(ends, high)
    return len(split.rank_intervals) == ranks and ends == split.units


def _moved_inputs(graph: Graph, ranks: int) -> Iterator[Violation]:
    for node in graph.find_nodes(op="placeholder"):
        pinned = source_of(node).pinned
        if pinned is not None and isinstance(layout_of(node), Split) and shards_of(node) != pinned:
            yield node, f"is {shards_of(node)}, and was {pinned}"


# After insert.


def _mismatched(graph: Graph, ranks: int) -> Iterator[Violation]:
    for node in graph.nodes:
        choice = choice_of(node)
        if choice is None or choice.kind in ("input", "item"):
            continue
        for value, wanted in zip(tensor_nodes(node), choice.operands, strict=True):
            if layout_of(value) != wanted:
                yield node, f"needs {value.name} in {wanted}, and it is in {layout_of(value)}"


def _summed_otherwise(graph: Graph, ranks: int) -> Iterator[Violation]:
    known: dict[Any, Node] = {}
    for node in graph.find_nodes(op="call_function", target=all_reduce):
        value, partial = node.args
        first = known.setdefault(value, node)
        if layout_of(value) != partial:
            yield node, f"sums {value.name}, which is in {layout_of(value)}"
        elif first is not node:
            yield node, f"sums {value.name} again, after {first.name}"


def _converted_otherwise(graph: Graph, ranks: int) -> Iterator[Violation]:
    known: dict[Hashable, Node] = {}
    for target in (all_gather, shard, to_partial):
        for node in graph.find_nodes(op="call_function", target=target):
            value = node.args[0]
            held = node.args[1] if target is all_gather else Replicate()
            first = known.setdefault((target, node.args), node)
            if layout_of(value) != held:
                yield node, f"takes {value.name} to be in {held}, and it is in {layout_of(value)}"
            elif first is not node:
                yield node, f"does what {first.name} does"


def _escaping_sums(graph: Graph, ranks: int) -> Iterator[Violation]:
    for value in tensor_nodes(graph.output_node()):
        if isinstance(layout_of(value), Partial):
            yield value, "is one: its all_reduce is missing"


def _written_copies(graph: Graph, ranks: int) -> Iterator[Violation]:
    for node in graph.nodes:
        if is_mutable(node) and node.all_input_nodes[0].op != "placeholder":
            yield node, f"writes to {node.all_input_nodes[0].name}, which is a copy"


def _misplaced_gradients(graph: Graph, ranks: int) -> Iterator[Violation]:
    for gradient, weight in _gradients(graph):
        if layout_of(gradient) != layout_of(weight):
            yield gradient, f"is in {layout_of(gradient)}, and {weight.name} in {layout_of(weight)}"


# After localize: of the parallel graph, and the graphs of ranks.


def _out_of_step(graphs: tuple[Graph, ...], ranks: int) -> Iterator[Violation]:
    parallel, *own = graphs
    planned = [signature for _, signature in _planned(parallel)]
    for graph in own:
        issued = [*_issued(graph), (graph.output_node(), ())]
        for (node, signature), expected in zip(issued, [*planned, ()], strict=False):
            if signature != expected:
                yield node, f"comes where {expected or 'the end'} is planned"
                break


def _planned(parallel: Graph) -> Iterator[tuple[Node, Signature]]:
    """The collectives of a parallel graph, in order."""
    for node in parallel.nodes:
        if node.target is all_reduce:
            yield node, ("all_reduce", node.name, node.args[1].op)
        elif node.target is all_gather:
            yield node, ("all_gather", node.name)
        elif may_draw(node):
            yield node, ("draw", node.name)


def _issued(graph: Graph) -> Iterator[tuple[Node, Signature]]:
    """The collectives of a rank's graph, in order, by the nodes of the parallel graph that they are for."""
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in _REDUCTIONS:
            yield node, ("all_reduce", origin_of(node), node.args[1])
        elif node.target in _ISSUED:
            yield node, (_ISSUED[node.target], origin_of(node))
        elif (
            getattr(node.target, "namespace", "") == c10d.name and node.target is not c10d.wait_tensor.default
        ):
            yield node, (str(node.target), origin_of(node))


Signature = tuple[Any, ...]  # of a collective: what it is, what it is of, and how it reduces
_REDUCTIONS = (c10d.all_reduce.default, c10d.all_reduce_.default)
_ISSUED: dict[Any, str] = {gather_shards: "all_gather", **dict.fromkeys(BROADCASTS, "draw")}


def _drawn_alone(graphs: tuple[Graph, ...], ranks: int) -> Iterator[Violation]:
    for node in (node for graph in graphs[1:] for node in graph.nodes):
        for alone in (*([node] if may_draw(node) else ()), *inner_draws(node)):
            yield node, f"draws by {alone.target} for this rank alone"


# The table.

NORMALIZED = (
    Invariant("fx finds the graph well-formed", _ill_formed),
    Invariant("no product or convolution adds a bias", _biased),
    Invariant("a product with a transposed weight is a linear", _unfused),
    Invariant("every view is a reshape", _views),
)
SIMPLIFIED = (
    Invariant("fx finds the graph well-formed", _ill_formed),
    Invariant("no op does nothing", _idle),
    Invariant("nothing is computed twice", _repeated),
)
INFERRED = (
    Invariant("every tensor has dimensions, whose sizes are its own", _unknown_dims),
    Invariant("every op has a rule bound to it, or is bound as whole", _unbound),
    Invariant("a gradient has the axes of its weight", _other_gradients),
)
CHOSEN = (
    Invariant("whatever is decided has a choice", _undecided),
    Invariant("an op's rule allows its choice", _forbidden),
    Invariant("every tensor is in the layout that a choice gives it", _other_layouts),
)
DIVIDED = (
    Invariant("the ranks' intervals of a split in use cover its axes once", _undivided),
    Invariant("a pinned input stays as it is or is gathered", _moved_inputs),
)
INSERTED = (
    Invariant("fx finds the graph well-formed", _ill_formed),
    Invariant("every operand is in the layout that its user chose", _mismatched),
    Invariant("a partial sum is reduced once, and nothing else is", _summed_otherwise),
    Invariant("a value is converted once, from the layout that it is in", _converted_otherwise),
    Invariant("no partial sum leaves the graph", _escaping_sums),
    Invariant("what is written to is an input itself", _written_copies),
    Invariant("a gradient is laid out as its weight", _misplaced_gradients),
)
LOCALIZED = (
    Invariant("a rank issues the planned collectives in the planned order", _out_of_step),
    Invariant("what draws does so on one rank for all, in graphs that an op calls too", _drawn_alone),
)
