"""In what two plans differ.

for line in differences(Plan.load("a.json"), Plan.load("b.json")):
    print(line)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..formatting import bytes_text, seconds_text
from .plan import GraphPlan, Plan, WeightPlan


def differences(left: Plan, right: Plan) -> Iterator[str]:
    """One line for each difference: the whole, weights, graphs and their ops. None: the plans are alike."""
    for what in ("model", "devices", "tpfx", "topology"):
        before, after = getattr(left, what), getattr(right, what)
        if before != after:
            yield f"{what}: {before} → {after}"
    before, after = max(left.bytes_per_device), max(right.bytes_per_device)
    if before != after:
        yield f"weights, most on a device: {bytes_text(before)} → {bytes_text(after)}"
    for name in dict.fromkeys([*left.weights, *right.weights]):
        one, other = left.weights.get(name), right.weights.get(name)
        if one != other:
            yield f"{name}: {_weight(one)} → {_weight(other)}"
    for at in range(max(len(left.graphs), len(right.graphs))):
        yield from _graphs(left.graphs[at : at + 1], right.graphs[at : at + 1], at)


def _weight(weight: WeightPlan | None) -> str:
    if weight is None:
        return "not there"
    text = f"{weight.dtype}{weight.shape}"
    if weight.shards is None:
        return f"{text} unused"
    if not weight.shards:
        return f"{text} whole"
    dims = [
        f"dimension {dim} as {'+'.join(str(sum(b - a for a, b in own)) for own in owned)}"
        for dim, owned in weight.shards.dims
    ]
    return f"{text} split, {', '.join(dims)}"


def _graphs(left: list[GraphPlan], right: list[GraphPlan], at: int) -> Iterator[str]:
    if not left or not right:
        there = (left or right)[0]
        yield f"graph {at} ({there.phase}): only in the {'first' if left else 'second'}"
        return
    one, other = left[0], right[0]
    where = f"graph {at} ({one.phase})"
    if one.fingerprint != other.fingerprint:
        yield f"{where}: of other ops ({len(one.ops)} → {len(other.ops)})"
    for what in ("phase", "optimal"):
        before, after = getattr(one, what), getattr(other, what)
        if before != after:
            yield f"{where}: {what}: {before} → {after}"
    if _collectives(one) != _collectives(other):
        yield f"{where}: collectives: {_collectives(one)} → {_collectives(other)}"
    if one.estimate.seconds != other.estimate.seconds:
        times = seconds_text(one.estimate.seconds), seconds_text(other.estimate.seconds)
        yield f"{where}: time: {times[0]} → {times[1]}"
    after = {op.name: op for op in other.ops}
    for op in one.ops:
        if op.name in after and op.choice != after[op.name].choice:
            yield f"{where}: {op.name}: {op.choice} → {after[op.name].choice}"


def _collectives(graph: GraphPlan) -> str:
    counts = Counter(one.kind for one in graph.collectives)
    sent = sum(one.bytes for one in graph.collectives)
    return f"{', '.join(f'{count} {kind}' for kind, count in counts.items()) or 'none'} ({bytes_text(sent)})"
