"""Plans for Graphviz."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

from ..formatting import bytes_text
from ..ir.parallel_graph import ParallelGraph
from ..plan.plan import Plan
from .chain import Step, steps
from .module_tree import Weights, blocks
from .svg import wrapped


def dot(plan: Plan, parallels: Sequence[ParallelGraph]) -> str:
    """A plan for Graphviz: a cluster for each graph, and in it one for layers that are alike."""
    weights = Weights(plan)
    lines = [
        f"digraph {json.dumps(plan.model)} {{",
        '  node [shape=box, style="rounded", fontname="monospace"];',
        '  edge [fontname="sans-serif", fontcolor="#a63d12"];',
    ]
    for at, (parallel, graph) in enumerate(zip(parallels, plan.graphs, strict=True)):
        title = f"{graph.phase} on {plan.devices} devices"
        lines += [f"  subgraph cluster_{at} {{", f"    label={_quoted(title)};"]
        lines += (
            f"    {line}" for line in _dot_lines(steps(blocks(parallel, weights), graph), f"g{at}_", weights)
        )
        lines.append("  }")
    return "\n".join([*lines, "}"])


def _dot_lines(chain: Sequence[Step], prefix: str, weights: Weights) -> Iterator[str]:
    numbered = list(enumerate(chain))
    for frame, inside in groupby(numbered, lambda each: each[1].frame):
        nodes = [f"{prefix}{at} [label={_quoted(_dot_label(step, weights))}];" for at, step in inside]
        if frame:
            first = nodes[0].partition(" ")[0]
            nodes = [
                f"subgraph cluster_{first} {{",
                f"  label={_quoted(frame)};",
                *(f"  {n}" for n in nodes),
                "}",
            ]
        yield from nodes
    for (at, step), (after, _) in pairwise(numbered):
        sent = _quoted("\n".join(step.collectives))
        label = f" [label={sent}]" if step.collectives else ""
        yield f"{prefix}{at} -> {prefix}{after}{label};"


def _dot_label(step: Step, weights: Weights) -> str:
    size = sum(weights.plans[index].bytes for index in step.weights)
    count = "1 weight" if len(step.weights) == 1 else f"{len(step.weights)} weights"
    held = [f"{count}, {bytes_text(size)}"] if step.weights else []
    return "\n".join([*([step.name] if step.name else []), *wrapped(step.lines, 48, 2), *held])


def _quoted(text: str) -> str:
    """A string of the DOT language."""
    inside = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{inside}"'
