"""What is told of graphs to whoever asks by TPFX_LOGS=graphs,plan; nothing is worked out for nobody.

tell_captured(graph)        # [tpfx.graphs] 312 ops of i64[s0, s1], with 146 weights
tell_plan(parallel)         # [tpfx.plan] 2 devices: 61 all_reduce, 1 gather, 4.8 MiB; proven cheapest, …
"""

from __future__ import annotations

import logging
from collections import Counter

from torch.fx import Graph

from ..console.logs import log_of
from ..formatting import bytes_text, counted, seconds_text, shape_text
from ..ir.annotations import source_of
from ..ir.nodes import is_tensor
from ..ir.parallel_graph import ParallelGraph
from .text import dump_text

_GRAPHS, _PLAN = log_of("graphs"), log_of("plan")


def tell_captured(graph: Graph) -> None:
    """A graph has been captured; its sources are known."""
    if not _GRAPHS.isEnabledFor(logging.INFO):
        return
    ops = sum(node.op == "call_function" for node in graph.nodes)
    tensors = [node for node in graph.find_nodes(op="placeholder") if is_tensor(node)]
    given = [shape_text(node.meta["val"]) for node in tensors if not source_of(node).is_weight]
    weights = len(tensors) - len(given)
    _GRAPHS.info(
        "captured %s of %s, with %s",
        counted(ops, "op"),
        ", ".join(given) or "no input",
        counted(weights, "weight"),
    )
    _GRAPHS.debug("%s", graph)


def tell_plan(parallel: ParallelGraph) -> None:
    """A graph has been divided."""
    if not _PLAN.isEnabledFor(logging.INFO):
        return
    collectives = parallel.collectives()
    counts = Counter(one.kind for one in collectives)
    sent = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "no collective"
    _PLAN.info(
        "%s: %s, %s; %s, %s%s",
        counted(parallel.ranks, "device"),
        sent,
        bytes_text(sum(one.bytes for one in collectives)),
        f"{seconds_text(parallel.solution.cost)} with a price on memory",
        "proven cheapest" if parallel.solution.optimal else "not proven cheapest",
        f"; whole for want of a rule: {', '.join(parallel.whole_ops)}" if parallel.whole_ops else "",
    )
    _PLAN.debug("%s", dump_text(parallel))
