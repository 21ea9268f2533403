"""Run a captured graph, what the passes made of it, and what each rank runs, node by node, and compare.

    replayed = verify_graphs(captured, parallel, modules, args, runtime)
    replayed.findings          # the first node at which they differ, or what the static checks say

Three runs with the same inputs and random numbers: the captured graph as it is, the parallel graph with the
meaning that it has for whole tensors, and the ranks' graphs in the ranks' threads. A rank's value must be its
shard of the whole one; partial sums must add up to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..errors import RankAborted
from ..formatting import shape_text
from ..ir.annotations import layout_of, shards_of
from ..ir.layout import Partial
from ..ir.nodes import is_tensor
from ..ir.parallel_graph import ParallelGraph
from ..ir.provenance import origin_of
from ..kernels.collectives import combine_partials
from ..kernels.slices import shard_of
from ..runtime.thread_runtime import Runtime
from .findings import Finding, Findings
from .reference_run import LocalRecorder, Reference, ValueRecorder, clone_value, drawing_from
from .static_checks import check_graphs, first_line


@dataclass(frozen=True)
class Replayed:
    """What came of one graph.

    Attributes:
        results: what the captured graph returned.
        findings: what is wrong with the parallel graph and the ranks'.
        nodes: how many nodes were compared.
    """

    results: Any
    findings: list[Finding]
    nodes: int


def verify_graphs(
    captured: GraphModule,
    parallel: ParallelGraph,
    modules: Sequence[GraphModule],
    args: Sequence[Any],
    runtime: Runtime,
) -> Replayed:
    """Check the ranks' graphs, run everything, and name the first node that differs.

    Ranks of which the static checks find something are not run: they might wait for each other.

    Args:
        captured: a copy of the captured graph from before any pass.
        parallel: the parallel graph.
        modules: the graphs of ranks 0, 1, …
        args: the graph's inputs, whole; the captured graph alone writes into them.
        runtime: the threads of the ranks.

    Raises:
        Exception: what the captured graph raises.
    """
    findings = Findings(parallel)
    check_graphs(parallel, modules, findings)
    safe, state, given = not findings, torch.get_rng_state(), [clone_value(arg) for arg in args]
    reference = Reference(captured, parallel.graph, given, state)
    original = ValueRecorder(captured)
    results = original.run(*args)
    try:
        reference.run()
    except Exception as error:
        assert reference.recorder.failed is not None
        findings.add("rewrite", reference.recorder.failed, f"raises {first_line(error)}")
        return Replayed(results, findings.listed(), 0)
    _compare_rewrite(captured, parallel, original, reference, findings)
    nodes = 0
    if safe:
        with drawing_from(state):
            ranks = _run_ranks(parallel, modules, given, runtime, findings)
        nodes = _compare_ranks(parallel, reference, ranks, findings)
    return Replayed(results, findings.listed(), nodes)


def _run_ranks(
    parallel: ParallelGraph,
    modules: Sequence[GraphModule],
    args: Sequence[Any],
    runtime: Runtime,
    findings: Findings,
) -> list[LocalRecorder]:
    """Run the ranks' graphs in the ranks' threads; note where one raises."""
    ranks = [LocalRecorder(module) for module in modules]
    placeholders = parallel.graph.find_nodes(op="placeholder")
    calls = []
    for rank, local in enumerate(ranks):
        row = [_input(node, arg, rank) for node, arg in zip(placeholders, args, strict=True)]
        calls.append(partial(local.run, *row))
    try:
        runtime.run(calls)
    except Exception:
        failed = [rank for rank, local in enumerate(ranks) if _own(local.error)]
        if not failed:
            raise
        for rank in failed:
            _note_failure(ranks[rank], rank, findings)
    return ranks


def _own(error: Exception | None) -> bool:
    """Whether a rank raised by itself, and not because another one did."""
    return error is not None and not isinstance(error, RankAborted)


def _note_failure(local: ValueRecorder, rank: int, findings: Findings) -> None:
    assert local.failed is not None and local.error is not None
    node = findings.nodes[origin_of(local.failed) or "output"]
    findings.add("error", node, f"{local.failed.name} raises {first_line(local.error)}", rank)


def _input(node: Node, arg: Any, rank: int) -> Any:
    """A rank's own copy of its shard of an argument."""
    if not isinstance(arg, torch.Tensor):
        return arg
    layout = shards_of(node)
    if not layout:
        return clone_value(arg)
    return shard_of(arg, layout, rank).clone(memory_format=torch.contiguous_format)


def _compare_rewrite(
    captured: GraphModule,
    parallel: ParallelGraph,
    original: ValueRecorder,
    reference: Reference,
    findings: Findings,
) -> None:
    """What the passes left of the captured graph must have the values that it had; so must the results."""
    same = {node.name: node.name for node in parallel.graph.nodes if node.name in original.values}
    same |= {
        now.name: before.name
        for now, before in zip(_returned(parallel.graph), _returned(captured.graph), strict=True)
        if isinstance(now, Node) and isinstance(before, Node)
    }
    for node in parallel.graph.nodes:
        if is_tensor(node) and node.name in same:
            before = original.values[same[node.name]]
            text = reference.difference(node, reference[node.name], before)
            if text is not None:
                findings.add("rewrite", node, f"the passes changed it: {text}")
                return


def _returned(graph: Graph) -> Sequence[Any]:
    returned: Sequence[Any] = graph.output_node().args[0]  # type: ignore[assignment]
    return returned


def _compare_ranks(
    parallel: ParallelGraph, reference: Reference, ranks: Sequence[ValueRecorder], findings: Findings
) -> int:
    """Note the first node at which a rank has another value than it should; returns how many are right."""
    count = 0
    for node in parallel.graph.nodes:
        held = {rank: one.values[node.name] for rank, one in enumerate(ranks) if node.name in one.values}
        wrong = list(_differences(node, reference, held, len(ranks))) if held else []
        for rank, text in wrong:
            findings.add("value", node, text, *rank)
        if wrong:
            break
        count += bool(held)
    return count


def _differences(
    node: Node, reference: Reference, held: Mapping[int, Any], ranks: int
) -> Iterator[tuple[tuple[int, ...], str]]:
    """How what ranks have of a value differs from what they should have, with the ranks.

    A rank has nothing of a value that one of its ops has taken in, as a bias is by its product.
    """
    whole, layout = reference[node.name], layout_of(node)
    if isinstance(layout, Partial) and is_tensor(node):
        if {shape_text(value) for value in held.values()} == {shape_text(whole)}:
            sum_ = combine_partials(list(held.values()), layout.op)
            text = reference.difference(node, sum_, whole) if len(held) == ranks else None
            if text is not None:
                yield (), f"the ranks' partial sums do not give it: {text}"
            return
    elif isinstance(whole, (tuple, list, torch.nn.Module)):
        return  # its items are nodes of their own; a graph that an op calls is known by what the op returns
    for rank, value in held.items():
        expected = shard_of(whole, shards_of(node), rank) if is_tensor(node) else whole
        text = reference.difference(node, value, expected)
        if text is not None:
            yield (rank,), text
