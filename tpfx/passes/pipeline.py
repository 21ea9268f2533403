"""The compiler, from a captured graph to one graph for each rank.

    PASSES = (normalize, infer_axes, …)      each a function that does one thing to a graph, in place

Everything works on fake tensors: no weights are needed to plan.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
import torch
from torch.fx import Graph, GraphModule, Node
from ..torch_internals.fx import HigherOrderOperator, OpOverload
from ..ir.annotations import Source, bound_of, is_joined, layout_of, set_joined, set_source
from ..ir.nodes import bytes_of
from ..ir.resharding import MESSAGES
from ..ir.parallel_graph import Solution
from ..ir.fingerprint import fingerprint
from ..ir.layout import Replicate, Split
from ..runtime.mesh import Mesh
from ..rules.bind import rule_of
from ..rules.table import is_random
from ..ir.splits import Splits
from .choose import choose, returned_whole
from .divide import divide
from .infer_axes import infer_axes
from .insert import insert
from .localize import localize
from .normalize import normalize
from .apply_plan import GraphChoices, apply_choices
from .simplify import simplify
from .verify import verify
from ..planning.pinned_layouts import recognise
from ..planning.topology import Topology
from ..torch_internals.fx import forget_erased
from ..ir.parallel_graph import Collective, Parallel


@dataclass
class Context:
    """What the passes of one graph share.

    Attributes:
        ranks: how many devices.
        topology: what messages and arithmetic cost.
        choices: choices made before, by the fingerprints of the graphs that they are for.
        splits: the splits that are considered.
        fingerprint: that of the graph, as inference leaves it.
        solution: what the chooser proved.
    """

    ranks: int
    topology: Topology = field(default_factory=Topology)
    choices: Mapping[str, GraphChoices] = field(default_factory=dict)
    splits: Splits | None = None
    fingerprint: str = ""
    solution: Solution | None = None


def _infer(graph: Graph, context: Context) -> None:
    infer_axes(graph)
    context.splits = Splits(graph, context.ranks)
    context.fingerprint = fingerprint(graph)


def _choose(graph: Graph, context: Context) -> None:
    assert context.splits is not None
    recognise(graph, context.splits)
    known = context.choices.get(context.fingerprint)
    if known is None:
        context.solution = choose(graph, context.ranks, context.topology, context.splits)
    else:
        apply_choices(graph, context.splits, known)
        context.solution = known.solution


PASSES: tuple[Callable[[Graph, Context], None], ...] = (
    lambda graph, context: normalize(graph),
    lambda graph, context: simplify(graph),
    _infer,
    _choose,
    lambda graph, context: divide(graph, context.ranks),
    lambda graph, context: insert(graph),
    lambda graph, context: verify(graph),
)


def parallelize(
    graph: Graph,
    sources: Sequence[Source],
    ranks: int,
    topology: Topology | None = None,
    choices: Mapping[str, GraphChoices] | None = None,
) -> Parallel:
    """Plan a captured graph in place.

    Args:
        graph: an ATen graph with fake tensors under `val`.
        sources: what each of the graph's inputs is, in order.
        ranks: how many devices.
        topology: what messages cost.
        choices: choices made before, by fingerprint: a graph that has some is not solved again.

    Raises:
        PlanError: choices made before are not of this graph.
    """
    forget_erased(graph)
    context = Context(ranks, topology or Topology(), choices or {})
    infer_structures(graph, sources, context)
    for run in PASSES[PASSES.index(_infer) + 1 :]:
        run(graph, context)
    graph.lint()
    assert context.solution is not None and context.splits is not None
    recalled = context.fingerprint in context.choices
    parallel = Parallel(graph, context.solution, ranks, context.splits, context.fingerprint, recalled)
    parallel.whole_ops = _whole_ops(graph)
    for node in parallel.outputs():
        if isinstance(layout_of(node), Split) and returned_whole(node):
            set_joined(node)
    forget_erased(graph)
    return parallel


def infer_structures(graph: Graph, sources: Sequence[Source], context: Context) -> None:
    """Run the passes up to inference: what dimensions are made of, before anything is chosen."""
    for node, source in zip(graph.find_nodes(op="placeholder"), sources, strict=True):
        set_source(node, source)
    for run in PASSES[: PASSES.index(_infer) + 1]:
        run(graph, context)


def _whole_ops(graph: Graph) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in graph.nodes:
        target = node.target
        named = isinstance(target, (OpOverload, HigherOrderOperator))
        if named and bound_of(node) is not None and rule_of(node) is None and not is_random(node):
            counts[str(target)] = counts.get(str(target), 0) + 1
    return counts


def lower(parallel: Graph, mesh: Mesh, root: torch.nn.Module) -> list[GraphModule]:
    """The graph modules of the ranks that this process owns; constants are taken from `root`."""
    modules = []
    for rank in mesh.owned:
        graph = localize(parallel, rank, mesh.size, mesh.group_name(rank), rank in mesh.firsts)
        _place(graph, mesh.devices[rank])
        module = GraphModule(_constants(graph, root, mesh.devices[rank]), graph, class_name=f"Rank{rank}")
        modules.append(module)
    return modules


def _place(graph: Graph, device: torch.device) -> None:
    """Make on a rank's own GPU what the captured graph makes on the first one."""
    for node in graph.nodes:
        given = node.kwargs.get("device")
        if isinstance(given, torch.device) and given.type == device.type != "cpu":
            node.kwargs = {**node.kwargs, "device": device}


def _constants(graph: Graph, root: torch.nn.Module, device: torch.device) -> dict[str, Any]:
    """What a graph refers to by name, on a device: tensors, and graphs of branches or loops."""
    names = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    return {name: _constant(getattr(root, name), device) for name in names}


def _constant(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value).to(device)
    return value.to(device) if isinstance(value, torch.Tensor) and value.dim() else value
