"""The compiler, from a captured graph to a parallel graph: `PASSES`, in order.

    parallelize(graph, sources, ranks=2)      # every pass does one thing to the graph, in place

Everything works on fake tensors: no weights are needed to plan.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Graph

from ..console.progress import working
from ..dump.logs import tell_captured, tell_plan
from ..errors import PlanError
from ..ir.annotations import Source, bound_of, set_source
from ..ir.fingerprint import circumstances, fingerprint
from ..ir.parallel_graph import ParallelGraph
from ..ir.splits import Splits
from ..planning import Topology
from ..planning.pinned_layouts import match_pinned
from ..rules import is_random, may_draw_inside, rule_of
from ..rules.register import registered
from ..torch_internals.fx import HigherOrderOperator, OpOverload, forget_erased
from .apply_plan import GraphChoices, apply_choices, encode_choices
from .choose import choose
from .context import Context, Kept
from .divide import divide
from .infer_axes import infer_axes
from .insert import insert
from .invariants import CHOSEN, DIVIDED, INFERRED, INSERTED, NORMALIZED, SIMPLIFIED, Invariant, check
from .normalize import normalize
from .simplify import simplify
from .stages import CAPTURED, LOCALIZE, show_stage

log = logging.getLogger("tpfx")


@dataclass(frozen=True)
class Pass:
    """One stage of the compiler.

    Attributes:
        name: what it is called in dumps and errors.
        run: changes a graph in place, or finds out something about it for later passes.
        holds_after: what must hold of the graph afterwards.
    """

    name: str
    run: Callable[[Graph, Context], None]
    holds_after: tuple[Invariant[Graph], ...] = ()


def list_splits(graph: Graph, context: Context) -> None:
    """Find the splits that are worth considering."""
    context.splits = Splits(graph, context.ranks)


def take_fingerprint(graph: Graph, context: Context) -> None:
    """Take down what tells this graph from others."""
    context.fingerprint = fingerprint(graph)


def choose_or_apply(graph: Graph, context: Context) -> None:
    """Give every op the choice that a plan has for this graph, and choose where none has."""
    known = context.choices.get(context.fingerprint)
    if known is not None:
        apply_choices(graph, context.considered, known)
        context.solution = known.solution
    elif context.kept is None or not _recall(graph, context, context.kept):
        context.solution = choose(graph, context.ranks, context.topology, context.considered)


def _recall(graph: Graph, context: Context, kept: Kept) -> bool:
    """Give every op the choice that an earlier process has made, where all that choosing goes by is equal."""
    same = context.fingerprint, circumstances(graph), context.ranks, context.topology, registered()
    context.to_keep = " ".join(map(str, same))
    known = kept.get(context.to_keep)
    if known is None:
        return False
    try:
        apply_choices(graph, context.considered, known)
    except PlanError as problem:
        log.debug("a plan that was kept is made anew: %s", problem)
        return False
    context.solution, context.to_keep = known.solution, ""
    return True


def _keep(graph: Graph, context: Context) -> None:
    """Keep what was chosen for later processes."""
    if context.kept is not None and context.to_keep:
        assert context.solution is not None
        ops, _ = encode_choices(graph, context.considered)  # how splits are divided follows from the choices
        context.kept.put(context.to_keep, GraphChoices(list(ops.values()), {}, context.solution))


PASSES = (
    Pass("normalize", lambda graph, _: normalize(graph), NORMALIZED),
    Pass("simplify", lambda graph, _: simplify(graph), SIMPLIFIED),
    Pass("infer_axes", lambda graph, _: infer_axes(graph), INFERRED),
    Pass("list_splits", list_splits),
    Pass("fingerprint", take_fingerprint),
    Pass("match_pinned", lambda graph, context: match_pinned(graph, context.considered)),
    Pass("choose", choose_or_apply, CHOSEN),
    Pass("divide", lambda graph, context: divide(graph, context.ranks), DIVIDED),
    Pass("insert", lambda graph, _: insert(graph), INSERTED),
)
STAGES = (CAPTURED, *(one.name for one in PASSES), LOCALIZE)  # the last: one graph for each rank, by `lower`
BEFORE_CHOICE = next(at for at, one in enumerate(PASSES) if one.name == "match_pinned")


def run_passes(passes: Sequence[Pass], graph: Graph, context: Context) -> None:
    """Run passes in order; check what must hold after each, and show the graph to whoever asks.

    Raises:
        ShardingError: something does not hold, which is a bug of a pass.
    """
    for one in passes:
        one.run(graph, context)
        check(one.name, one.holds_after, graph, context.ranks)
        show_stage(one.name, graph, STAGES)


def parallelize(
    graph: Graph,
    sources: Sequence[Source],
    ranks: int,
    topology: Topology | None = None,
    choices: Mapping[str, GraphChoices] | None = None,
    kept: Kept | None = None,
) -> ParallelGraph:
    """Plan a captured graph in place.

    Args:
        graph: an ATen graph with fake tensors under `val`.
        sources: what each of the graph's inputs is, in order.
        ranks: how many devices.
        topology: what collectives cost.
        choices: choices made before, by fingerprint: a graph that has some is not solved again.
        kept: where other choices are kept for later processes, and found.

    Raises:
        PlanError: choices made before are not of this graph.
        InputError: `TPFX_DUMP` names a stage that is not there.
        ShardingError: what must hold after a pass does not, which is a bug of the pass.
    """
    forget_erased(graph)
    context = Context(ranks, topology or Topology(), choices or {}, kept)
    with working(f"planning for {ranks} device{'s' * (ranks != 1)}"):
        infer_structures(graph, sources, context)
        run_passes(PASSES[BEFORE_CHOICE:], graph, context)
    _keep(graph, context)
    assert context.solution is not None
    recalled = context.fingerprint in context.choices
    parallel = ParallelGraph(
        graph, context.solution, ranks, context.considered, context.fingerprint, recalled
    )
    parallel.whole_ops = _whole_ops(graph)
    tell_plan(parallel)
    forget_erased(graph)
    return parallel


def infer_structures(graph: Graph, sources: Sequence[Source], context: Context) -> None:
    """Run the passes up to inference: what dimensions are made of, before anything is chosen."""
    for node, source in zip(graph.find_nodes(op="placeholder"), sources, strict=True):
        set_source(node, source)
    show_stage(CAPTURED, graph, STAGES)
    tell_captured(graph)
    run_passes(PASSES[:BEFORE_CHOICE], graph, context)


def _whole_ops(graph: Graph) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in graph.nodes:
        target = node.target
        named = isinstance(target, (OpOverload, HigherOrderOperator))
        # What draws is whole by its nature, not for want of a rule.
        drawn = is_random(node) or may_draw_inside(node)
        if named and bound_of(node) is not None and rule_of(node) is None and not drawn:
            counts[str(target)] = counts.get(str(target), 0) + 1
    return counts
