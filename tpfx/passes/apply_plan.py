"""Give every op the choice that a plan has for it, instead of choosing.

split 0 1 -> 0     an op whose first operand and result are in split 0, its second operand in split 1
pending + * -> +   partial sums in, partial sums out; *: whole on every rank

A number is that of a split, of which the plan's `units` say how many units of an axis each rank has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Graph, Node

from ..errors import PlanError
from ..ir.annotations import Choice, bound_of, choice_of, set_choice, set_layout
from ..ir.layout import Layout, Partial, Replicate, Split
from ..ir.nodes import is_getitem, is_tensor
from ..ir.parallel_graph import Solution
from ..ir.splits import Splits
from ..planning.choices import allows
from .choose import is_decided

REPLICATE = Replicate()


@dataclass(frozen=True)
class GraphChoices:
    """How a graph is carried out, as a plan has it.

    Attributes:
        ops: a choice for each op, in order, as `encode_choices` writes it.
        units: split → how many of its units each rank has.
        solution: what the chooser proved.
    """

    ops: Sequence[str]
    units: Mapping[int, Sequence[int]]
    solution: Solution


def apply_choices(graph: Graph, splits: Splits, choices: GraphChoices) -> None:
    """Give every op its choice, and divide the splits in use; they were chosen before for an equal graph.

    Raises:
        PlanError: the choices are not of this graph, which stays as it was.
    """
    known = list(splits)
    for number, sizes in choices.units.items():
        if number >= len(known) or len(sizes) != splits.ranks or not _divisible(known[number], sizes):
            raise PlanError(
                f"the plan divides split {number} as {list(sizes)}, which this model does not allow; "
                "make it anew with tpfx plan"
            )
    nodes = [node for node in graph.nodes if is_decided(node)]
    if len(nodes) != len(choices.ops):
        raise PlanError(
            f"the plan decides {len(choices.ops)} ops of a graph that has {len(nodes)}; make it "
            "anew with tpfx plan"
        )
    chosen = [_parsed(text, known) for text in choices.ops]
    for node, text, choice in zip(nodes, choices.ops, chosen, strict=True):
        if not _possible(node, choice):
            raise PlanError(
                f"the plan has {text!r} for {node.name}, which that op does not allow; make it anew "
                "with tpfx plan"
            )
    for number, sizes in choices.units.items():
        if not known[number].rank_intervals:
            known[number].divide(sizes)
    for node, choice in zip(nodes, chosen, strict=True):
        set_choice(node, choice)
        if is_tensor(node):
            set_layout(node, choice.results[0])


def encode_choices(graph: Graph, splits: Splits) -> tuple[dict[Node, str], dict[int, list[int]]]:
    """The choices of a planned graph by node, and for each split in use how many units every rank has."""
    numbers = {split: number for number, split in enumerate(splits)}
    choices: dict[Node, str] = {}
    used: dict[int, list[int]] = {}
    for node in graph.nodes:
        choice = choice_of(node)
        if choice is None:
            continue
        held = (*choice.operands, *choice.results)
        choices[node] = (
            f"{choice.kind} {_texts(choice.operands, numbers)} -> {_texts(choice.results, numbers)}"
        )
        for layout in held:
            if isinstance(layout, Split):
                used.setdefault(numbers[layout], _units(layout))
    return choices, used


def _texts(layouts: Sequence[Layout], numbers: dict[Split, int]) -> str:
    return " ".join(_text(layout, numbers) for layout in layouts)


def _text(layout: Layout, numbers: dict[Split, int]) -> str:
    match layout:
        case Replicate():
            return "*"
        case Partial():
            return "+" if layout.op == "sum" else f"+{layout.op}"
        case Split():
            return str(numbers[layout])


def _parsed(text: str, splits: Sequence[Split]) -> Choice:
    before, arrow, after = text.partition("->")
    kind, *operands = before.split() or [""]
    try:
        sides = [tuple(_layout(word, splits) for word in words) for words in (operands, after.split())]
    except (ValueError, IndexError):
        arrow = ""
    if not arrow or not kind:
        raise PlanError(f"the plan has a choice that cannot be read: {text!r}; make it anew with tpfx plan")
    return Choice(kind, *sides)


def _possible(node: Node, choice: Choice) -> bool:
    """Whether a choice is for a node of this kind."""
    if bound_of(node) is not None:
        return allows(node, choice)
    kind = "item" if is_getitem(node) else "input" if node.op == "placeholder" else "whole"
    return choice.kind == kind and not choice.operands and len(choice.results) == 1


def _layout(word: str, splits: Sequence[Split]) -> Layout:
    if word == "*":
        return REPLICATE
    return Partial(word[1:] or "sum") if word.startswith("+") else splits[int(word)]


def _units(split: Split) -> list[int]:
    return [math.prod(stop - start for start, stop in box.values()) for box in split.rank_intervals]


def _divisible(split: Split, sizes: Sequence[int]) -> bool:
    """Whether a split may be divided so, or is already."""
    return _units(split) == list(sizes) if split.rank_intervals else split.fits(sizes)
