"""A planned graph as a chain of steps, for drawings: a module or some ops each, with what is sent after it.

embed_tokens  -- all_reduce 128 MiB -->  ( input_layernorm --> self_attn --> mlp ) ×126  -->  norm
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ..dump.repeated_layers import span
from ..formatting import bytes_text
from ..plan.plan import GraphPlan
from .module_tree import Blocks, Module, OpLine, Part, Stack, WeightLine

L = TypeVar("L", OpLine, WeightLine)


@dataclass
class Step:
    """One box of a drawing.

    Attributes:
        name: of a module; or how many ops.
        frame: the layers that it belongs to, "layers.0–125 ×126", or empty.
        lines: what else there is to say of it.
        weights: places of its weights in `Weights`.
        collectives: what is sent in it or right after it, as text.
    """

    name: str
    frame: str = ""
    lines: list[str] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)
    collectives: list[str] = field(default_factory=list)


def steps(graph: Blocks, plan: GraphPlan) -> list[Step]:
    """The chain of a graph, from its inputs to its results."""
    found = [Step("inputs", lines=[row.name for row in graph.inputs])]
    for item in graph.items:
        if isinstance(item, Stack):
            found += _chain(_shown(item).parts, _title(item))
        else:
            _add(found, item, "")
    gathered = [collective for collective in plan.collectives if collective.kind == "gather"]
    found[-1].collectives += _told((collective.kind, collective.bytes) for collective in gathered)
    return [*found, Step("results", lines=[row.name for row in graph.results])]


def _shown(stack: Stack) -> Module:
    """The kind of layer that a stack has most of."""
    (kind, _), *_ = Counter(member.kind for member in stack.members).most_common(1)
    return stack.kinds[kind]


def _title(stack: Stack) -> str:
    first, last, shown = stack.members[0].name, stack.members[-1].name, _shown(stack)
    if len(stack.members) == 1:
        return first + _pass(shown)
    others = sum(stack.kinds[member.kind] != shown for member in stack.members)
    some = f", {others} of them otherwise" if others else ""
    return f"{span(first, last)} ×{len(stack.members)}{some}{_pass(shown)}"


def _pass(module: Module) -> str:
    """What is added to the name of a module that only computes gradients."""
    ops = list(lines_in([module], OpLine))
    return ", backward" if ops and all(op.backward for op in ops) else ""


def _chain(parts: Iterable[Part], frame: str) -> list[Step]:
    found: list[Step] = []
    for part in parts:
        _add(found, part, frame)
    return found


def _add(found: list[Step], part: Part, frame: str) -> None:
    """Put a part at the end of a chain: a module is a step, ops in a row are one."""
    if isinstance(part, Module):
        lines = list(_roles(part))
        collectives = _told(op.collective for op in lines_in([part], OpLine) if op.collective is not None)
        weights = [weight.index for weight in lines_in([part], WeightLine)]
        found.append(Step(part.name + ("" if frame else _pass(part)), frame, lines, weights, collectives))
        return
    if isinstance(part, OpLine) and part.collective is not None and found and found[-1].frame == frame:
        found[-1].collectives += _told([part.collective])
        return
    last = found[-1] if found else None
    if last is None or last.name or last.frame != frame or last.collectives:
        last = Step("", frame)
        found.append(last)
    if isinstance(part, WeightLine):
        last.weights.append(part.index)
    else:
        last.lines.append(part.call.partition("(")[0].rpartition(".")[2])


def _told(collectives: Iterable[tuple[str, int]]) -> list[str]:
    """Collectives as text, equal ones together: 2 all_reduce 128 MiB"""
    counts = Counter(collectives)
    return [f"{'' if n == 1 else f'{n} '}{kind} {bytes_text(size)}" for (kind, size), n in counts.items()]


def _roles(module: Module) -> Iterator[str]:
    """How a module's products are divided: "column: q_proj, k_proj", "row: o_proj"."""
    for role in ("column", "row"):
        where = [
            name for name, op in _products(module, module.name) if any(n.startswith(role) for n in op.notes)
        ]
        if where:
            yield f"{role}: {', '.join(dict.fromkeys(where))}"


def _products(module: Module, name: str) -> Iterator[tuple[str, OpLine]]:
    """The ops of a module, each with the name of the innermost module that it is in."""
    for part in module.parts:
        if isinstance(part, Module):
            yield from _products(part, part.name)
        elif isinstance(part, OpLine):
            yield name, part


def lines_in(parts: Sequence[Part], kind: type[L]) -> Iterator[L]:
    """The lines of one kind, of ops or of weights, in order."""
    for part in parts:
        if isinstance(part, kind):
            yield part
        elif isinstance(part, Module):
            yield from lines_in(part.parts, kind)
