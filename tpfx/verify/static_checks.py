"""Whether the ranks' graphs carry out the parallel graph, as far as that can be seen without running them.

    check_graphs(parallel, modules, findings)      # modules[r]: the graph of rank r

Every rank must carry out each planned collective once and in the planned order, take the values that are
planned, and compute shapes that the layouts say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Interpreter, Node

from ..formatting import shape_text
from ..ir.annotations import layout_of, shards_of
from ..ir.layout import Partial
from ..ir.nodes import hint_of, is_tensor
from ..ir.parallel_graph import ParallelGraph
from ..ir.provenance import origin_of, represents
from ..ir.resharding import COLLECTIVES, all_reduce
from ..kernels.collectives import BROADCASTS, gather_shards
from ..kernels.slices import shard_of
from ..lowering.nested_graphs import broadcast_of
from ..lowering.rank_graph import gathering
from ..rules import inner_draws, may_draw
from ..torch_internals.fake import UNKNOWN_TO_FAKES, FakeTensorMode
from ..torch_internals.fx import HigherOrderOperator
from .findings import Findings

c10d = torch.ops._c10d_functional


def check_graphs(parallel: ParallelGraph, modules: Sequence[GraphModule], findings: Findings) -> None:
    """Note what is wrong with the graphs of ranks 0, 1, …"""
    for rank, module in enumerate(modules):
        _check_collectives(parallel, rank, module.graph, findings)
        _check_draws(rank, module.graph, findings)
        _check_operands(rank, module.graph, findings)
        _check_shapes(rank, module, findings)


# Collectives.


@dataclass(frozen=True)
class Signature:
    """What a collective is, of the value of which node of the parallel graph, and what else is planned of it.

    A rank's value may stand for several nodes: then there are several `values`.
    """

    kind: str
    values: tuple[str, ...]
    detail: Any


def _planned(parallel: ParallelGraph) -> Iterator[tuple[Node, Signature]]:
    """The collectives of a parallel graph, in order, as rank 0 carries them out."""
    for node in parallel.graph.nodes:
        if node.target in COLLECTIVES:
            reduces = node.target is all_reduce
            detail = node.args[1].op if reduces else gathering(node)
            yield node, Signature(COLLECTIVES[node.target], (node.args[0].name,), detail)
        elif may_draw(node):
            yield node, Signature("draw", (node.name,), _drawn(node))


def _issued(graph: Graph) -> Iterator[tuple[Node, Signature]]:
    """The collectives of a rank's graph, in order."""
    for node in graph.nodes:
        args = node.args
        if node.target in (c10d.all_reduce.default, c10d.all_reduce_.default):
            yield node, Signature("all_reduce", _moved(node), args[1])
        elif node.target is gather_shards:
            yield node, Signature("all_gather", _moved(node), (args[1], list(args[2]), args[6]))
        elif node.target in BROADCASTS:
            yield node, Signature("draw", (origin_of(node) or "",), args[-3])
        elif (
            getattr(node.target, "namespace", "") == c10d.name and node.target is not c10d.wait_tensor.default
        ):
            yield node, Signature(node.target._schema.name.partition("::")[2], _moved(node), None)


def _drawn(node: Node) -> Any:
    """The op that draws: that of a call which saves or takes the state of the generator is an argument."""
    return broadcast_of(node, draws=False, group="")[1][-3]


def _moved(node: Node) -> tuple[str, ...]:
    """The planned values that a collective moves; its operand may be a copy of what represents them."""
    value = node.all_input_nodes[0]
    while not represents(value) and value.all_input_nodes:
        value = value.all_input_nodes[0]
    return represents(value)


def _check_collectives(parallel: ParallelGraph, rank: int, graph: Graph, findings: Findings) -> None:
    """Each planned collective once, in the planned order, and nothing else."""
    planned = list(_planned(parallel))
    position = {(signature.kind, signature.values[0]): at for at, (_, signature) in enumerate(planned)}
    done: list[int] = []
    for call, signature in _issued(graph):
        known = [position[key] for value in signature.values if (key := (signature.kind, value)) in position]
        if not known:
            about = next(
                (findings.nodes[value] for value in signature.values if value in findings.nodes), None
            )
            about = about or parallel.graph.output_node()
            findings.add("collective", about, f"{_unplanned(about, signature.kind)} ({call.name})", rank)
            continue
        node, expected = planned[known[0]]
        if known[0] in done:
            findings.add("collective", node, f"its {signature.kind} is carried out twice", rank)
        elif done and known[0] < max(done):
            later = findings.name(planned[max(done)][0])
            findings.add("collective", node, f"its {signature.kind} comes after that of {later}", rank)
        if signature.detail != expected.detail:
            text = f"{signature.kind} of {signature.detail} where {expected.detail} is planned"
            findings.add("collective", node, text, rank)
        done.append(known[0])
    for at, (node, signature) in enumerate(planned):
        if at not in done:
            findings.add("collective", node, f"its {signature.kind} is missing", rank)


def _unplanned(node: Node, kind: str) -> str:
    if kind == "all_reduce" and node.target is all_reduce:
        return "the sum is summed again"
    return f"an {kind} that is not planned"


# Random numbers.


def _check_draws(rank: int, graph: Graph, findings: Findings) -> None:
    """Nothing draws for one rank alone, in graphs that an op calls neither."""
    for node in graph.nodes:
        for alone in (*([node] if may_draw(node) else ()), *inner_draws(node)):
            planned = findings.nodes.get(origin_of(node) or "") or next(reversed(findings.nodes.values()))
            findings.add("draw", planned, f"draws by {alone.target} for this rank alone ({alone.name})", rank)


# Operands.


def _check_operands(rank: int, graph: Graph, findings: Findings) -> None:
    """What a rank's op takes must stand for an operand of the planned op."""
    made = {name for node in graph.nodes for name in represents(node)}
    for node in graph.nodes:
        planned = findings.nodes.get(origin_of(node) or "")
        if planned is None:
            continue  # no pass wrote it: whoever takes its value is noted
        allowed = set(_operands(planned, made))
        for operand in node.all_input_nodes:
            inside = origin_of(operand) == planned.name
            if not inside and allowed.isdisjoint(represents(operand)):
                findings.add("operand", planned, _taken(operand, planned, findings), rank)
        if node.op == "output":
            _check_results(rank, node, planned, findings)


def _check_results(rank: int, output: Node, planned: Node, findings: Findings) -> None:
    """Each result in its place."""
    pairs = zip(output.args[0], planned.args[0], strict=True)  # type: ignore[arg-type]
    for position, (result, expected) in enumerate(pairs):
        if isinstance(expected, Node) and expected.name not in represents(result):
            text = f"result {position} is {result}, which does not stand for {findings.name(expected)}"
            findings.add("operand", planned, text, rank)


def _operands(planned: Node, made: set[str]) -> Iterator[str]:
    """The operands of a planned op, and those of operands that a rank's op has taken in."""
    for operand in planned.all_input_nodes:
        yield operand.name
        if operand.name not in made:
            yield from _operands(operand, made)


def _taken(operand: Node, planned: Node, findings: Findings) -> str:
    known = [findings.nodes[name] for name in represents(operand) if name in findings.nodes]
    if not known:
        return f"takes {operand.name}, which stands for nothing that is planned"
    value = known[0]
    unsummed = isinstance(layout_of(value), Partial)
    wanted = ", ".join(findings.name(one) for one in planned.all_input_nodes)
    what = "partial sums that are not summed" if unsummed else "which is not an operand of it"
    return f"takes {findings.name(value)}, {what}; planned: {wanted}"


# Shapes.


def _check_shapes(rank: int, module: GraphModule, findings: Findings) -> None:
    """The shape of every value, for the sizes that the model was captured with."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        shapes = _Shapes(module, rank, findings)
        inputs = [shapes.input(node) for node in module.graph.find_nodes(op="placeholder")]
        try:
            shapes.run(*inputs)
        except UNKNOWN_TO_FAKES:
            return  # shapes from here on depend on values: running the graph shows them
        except _Stop:
            return


class _Stop(Exception):
    """Ends a run whose outcome is known."""


class _Shapes(Interpreter):
    """Runs a rank's graph on fake tensors, up to the first that has another shape than its layout says."""

    def __init__(self, module: GraphModule, rank: int, findings: Findings) -> None:
        super().__init__(module)
        self.rank, self.findings = rank, findings

    def input(self, node: Node) -> Any:
        """A rank's shard of an input of the graph."""
        planned = self.findings.nodes[str(origin_of(node))]
        return self._shard(planned) if is_tensor(planned) else number_of(planned.meta["val"])

    def run_node(self, n: Node) -> Any:
        """Run one node, and look at the shape that comes out."""
        if isinstance(n.target, HigherOrderOperator):
            raise _Stop
        planned = self.findings.nodes.get(origin_of(n) or "")
        try:
            result = super().run_node(n)
        except UNKNOWN_TO_FAKES:
            raise
        except Exception as error:
            if planned is not None:
                self.findings.add("shape", planned, first_line(error), self.rank)
            raise _Stop from error
        for name in represents(n):
            known = self.findings.nodes.get(name)
            if known is not None and is_tensor(known):
                self._compare(known, result)
        return result

    def _compare(self, planned: Node, result: Any) -> None:
        expected = self._shard(planned)
        if not isinstance(result, torch.Tensor) or result.shape != expected.shape:
            text = f"{shape_text(result)} where its layout says {shape_text(expected)}"
            self.findings.add("shape", planned, text, self.rank)
            raise _Stop

    def _shard(self, planned: Node) -> torch.Tensor:
        value = planned.meta["val"]
        sizes = [hint_of(extent) for extent in value.shape]
        whole = torch.empty(sizes, dtype=value.dtype, device=value.device)
        return shard_of(whole, shards_of(planned), self.rank)


def number_of(value: Any) -> Any:
    """A number of the captured graph, that of the first inputs where it is symbolic."""
    if isinstance(value, torch.SymInt):
        return hint_of(value)
    return value.node.hint if isinstance(value, (torch.SymFloat, torch.SymBool)) else value


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
