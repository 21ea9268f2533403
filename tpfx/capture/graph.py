"""A graph that has been captured: its ops, what its inputs are, and how forward and backward are parted.

    graph = Captured(module, settle_sources(module, sources), Joint(results, inputs, options))
    gradients_in(graph.module.graph.output_node())       # {1: weight, …}: the results that are gradients
    forward, backward = graph.joint.parts(graph.module)

Where gradients are wanted, forward and backward are one joint graph, which is planned as a whole and then
parted in two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy

from ..ir.annotations import Source, set_gradients
from ..ir.nodes import copy_graph, is_check, is_tensor, is_view
from ..ir.parallel_graph import ParallelGraph
from ..torch_internals.aot import keeping_repetitions, min_cut_rematerialization_partition
from ..torch_internals.batch_guards import serves_any_batch
from .random_state import hidden, pin_draws, with_items
from .recurrent import keep_for_backward
from .sources import is_tangent

Phase = Literal["prefill", "decode", "train"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class Joint:
    """How a joint graph is parted in forward and backward.

    Attributes:
        results: how many of the values that it returns are the model's; gradients come after them.
        inputs: its inputs, as AOTAutograd has them.
        options: what else AOTAutograd tells a partitioner.
    """

    results: int
    inputs: Any
    options: dict[str, Any] = field(default_factory=dict)

    def parts(
        self, module: GraphModule, parallel: ParallelGraph | None = None
    ) -> tuple[GraphModule, GraphModule]:
        """The forward and the backward part of a graph; what is cheap to compute again is not saved.

        Where the graph has been planned, `parallel` is told which nodes are in the backward part alone.
        """
        pin_draws(module.graph)
        _pin_reads(module.graph)
        inputs = module.graph.find_nodes(op="placeholder")
        mode = next(node.meta["val"].fake_mode for node in inputs if is_tensor(node))
        with mode, hidden(module) as bring_back, keeping_repetitions():
            forward, backward = min_cut_rematerialization_partition(
                module, self.inputs, num_fwd_outputs=self.results, **self.options
            )
            bring_back(forward)
            bring_back(backward)
        _keep_checks(module.graph, forward.graph, backward.graph)
        if parallel is not None:
            first = {node.name for node in forward.graph.nodes}
            parallel.backward = frozenset(node.name for node in backward.graph.nodes) - first
        return forward, backward


@dataclass
class Captured:
    """One graph of a model, as AOTAutograd gives it; in a joint one it is marked which results are gradients.

    Attributes:
        module: the ATen graph, with fake tensors under `val`.
        sources: what each of the graph's inputs is, in order.
        joint: how a joint graph is parted; None for a graph without gradients.
        phase: in which call it was captured.
        kept: which inputs are results of earlier graphs: their position, then the graph's and the result's.
    """

    module: GraphModule
    sources: list[Source]
    joint: Joint | None = None
    phase: Phase = "prefill"
    kept: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.joint is not None:
            _mark_gradients(self.module.graph, self.joint.results)
            keep_for_backward(self.module.graph)

    def results(self) -> list[Any]:
        """The values that the model returns: fake tensors, numbers, None."""
        returned: Sequence[Any] = self.module.graph.output_node().args[0]  # type: ignore[assignment]
        count = len(returned) if self.joint is None else self.joint.results
        return [value.meta.get("val") if isinstance(value, Node) else value for value in returned[:count]]

    def copy(self) -> Captured:
        """The same with a graph and sources of its own, which may be changed."""
        return replace(self, module=copy_graph(self.module), sources=list(self.sources))


class SomeBatchesOnly(Exception):
    """Ends the capture of a graph that was to do for any number of rows."""


def require_any_batch(graph: Captured) -> None:
    """See that no guard of a graph minds the number of rows.

    Raises:
        SomeBatchesOnly: one does.
    """
    if not serves_any_batch(node.meta["val"] for node in graph.module.graph.find_nodes(op="placeholder")):
        raise SomeBatchesOnly("what was captured does for some batches alone")


def _mark_gradients(joint: Graph, results: int) -> None:
    """Record which values of a joint graph are gradients: after the results, one for each input, or none."""
    output = joint.output_node()
    inputs = [node for node in joint.find_nodes(op="placeholder") if not is_tangent(node)]
    returned: Sequence[Any] = output.args[0]  # type: ignore[assignment]
    gradients = zip(range(results, len(returned)), inputs, strict=True)
    set_gradients(output, {at: node for at, node in gradients if _is_dense(returned[at])})


def _is_dense(value: Any) -> bool:
    """Whether a result can be divided: a sparse tensor, such as an embedding's gradient, is whole."""
    return is_tensor(value) and value.meta["val"].layout is torch.strided


def _keep_checks(joint: Graph, forward: Graph, backward: Graph) -> None:
    """Put back what is called only to raise, and returned by nothing: what checks gradients, backward."""
    first = {node.name for node in forward.find_nodes(op="placeholder")}
    late: set[Node] = set()  # what is computed of gradients
    for node in joint.nodes:
        if (node.op == "placeholder" and node.name not in first) or not late.isdisjoint(node.all_input_nodes):
            late.add(node)
        if is_check(node):
            _put_back(node, backward if node in late else forward)


def _put_back(check: Node, part: Graph) -> None:
    made: dict[str, Node] = {node.name: node for node in part.nodes}

    def copied(node: Node) -> Node:
        if node.name not in made:
            for operand in node.all_input_nodes:
                copied(operand)
            with part.inserting_before(part.output_node()):
                made[node.name] = part.node_copy(node, lambda operand: made[operand.name])
        return made[node.name]

    copied(check)


def _pin_reads(joint: Graph) -> None:
    """Have what a joint graph computes of an input that it writes into saved, if its backward part needs it.

    By then the input is another: computed again, it would be another too.
    """
    for write in joint.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
        for read in _computed_of(write.args[0], write):
            for saved in with_items(read):
                saved.meta["recompute"] = CheckpointPolicy.MUST_SAVE


def _computed_of(value: Any, write: Node) -> Iterator[Node]:
    """What reads a value, or a view of it: a view that is saved is another by then as well."""
    for read in value.users:
        if is_view(read):
            yield from _computed_of(read, write)
        elif read is not write:
            yield read
