"""A planned graph as blocks: modules in modules, in the order in which they run, alike layers folded.

    embed_tokens                 Module: its weights and ops
    layers.0–125                 Stack: 126 layers of one kind, each by its name
        input_layernorm          Module, the same in each layer
        self_attn
            q_proj
    norm
    lm_head

In the texts of a layer `~` stands for its name, ⟨0⟩ for a value that it takes from outside, and §0 for a
size that varies; each layer says what they are. Its axes have letters of their own, from the first on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from typing import TypeAlias

from torch.fx import Node

from ..dump.columns import Row
from ..dump.repeated_layers import SHORTEST, Layer, runs
from ..dump.text import Dump
from ..ir.annotations import dims_of, is_weight, source_of
from ..ir.axes import Concat, Dim, find, segments
from ..ir.nodes import bytes_of
from ..ir.parallel_graph import ParallelGraph
from ..ir.provenance import layer_of, source_line
from ..ir.resharding import COLLECTIVES
from ..plan.explain import Price
from ..plan.plan import Plan, WeightPlan
from .layers import Group, Home, groups, homes, sequences
from .loads import Loads

Priced: TypeAlias = tuple[str, bool, float]  # a way as text, whether it is chosen, and seconds more


@dataclass(frozen=True)
class OpLine:
    """The line of an op, as in a dump, the line of code that it comes from, and the collective that it is.

    Attributes:
        seconds, kept, alive: see `Load`; of layers that are alike, what is alive is that of the first.
        ways: of the first as well, each as text, whether it is chosen, and how many seconds more it costs.
    """

    name: str
    type: str
    call: str
    notes: tuple[str, ...]
    source: str
    backward: bool
    collective: tuple[str, int] | None  # kind and bytes
    seconds: tuple[float, ...] = ()
    kept: tuple[int, ...] = ()
    alive: tuple[int, int] | None = field(default=None, compare=False)
    ways: tuple[Priced, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class WeightLine:
    """The line of a weight: `before` is what its full name begins with, `index` its place in `Weights`;
    `ways` as of an `OpLine`."""

    name: str
    before: str
    type: str
    notes: tuple[str, ...]
    index: int
    ways: tuple[Priced, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Module:
    """What a module does, from first to last."""

    name: str
    parts: tuple[Part, ...]


Part: TypeAlias = Module | OpLine | WeightLine


@dataclass(frozen=True)
class Member:
    """One layer of a stack: its name, its kind, and what the texts of that kind leave open.

    Attributes:
        alive: bytes of activations at its most, and after it; see `Load`.
    """

    name: str
    kind: int
    outside: tuple[str, ...]
    symbols: tuple[str, ...]
    alive: tuple[int, int] | None = None


@dataclass(frozen=True)
class Stack:
    """Layers that follow one another, of a few kinds."""

    kinds: tuple[Module, ...]
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Blocks:
    """One graph: its blocks, its other inputs, its results, and what there is to say of the whole."""

    items: tuple[Part | Stack, ...]
    inputs: tuple[Row, ...]
    results: tuple[Row, ...]
    summary: tuple[str, ...]


class Weights:
    """The weights of a plan, those that are alike once.

    Attributes:
        plans: what becomes of each; its axes have the letters of its layer.
        cuts: for each, where in a dimension one part of several that are packed ends: dimension → offsets.
    """

    def __init__(self, plan: Plan) -> None:
        self.plans: list[WeightPlan] = []
        self.cuts: list[dict[int, list[int]]] = []
        self._plan = plan
        self._known: dict[str, int] = {}

    def add(self, name: str, axes: list[str] | None = None, cuts: dict[int, list[int]] | None = None) -> int:
        """The place of a weight of the plan."""
        found = self._plan.weights[name]
        found = replace(found, axes=found.axes if axes is None else axes)
        at = self._known.setdefault(repr((found, cuts)), len(self.plans))
        if at == len(self.plans):
            self.plans.append(found)
            self.cuts.append(cuts or {})
        return at


def blocks(parallel: ParallelGraph, weights: Weights, loads: Loads | None = None) -> Blocks:
    """A planned graph as blocks; its weights are added to `weights`. Without `loads`, lines have none."""
    return _Graph(parallel, weights, loads).blocks()


def modules(items: Sequence[Part | Stack]) -> Iterator[Module]:
    """The modules among them, those of one kind of layer once."""
    for item in items:
        if isinstance(item, Module):
            yield item
        elif isinstance(item, Stack):
            yield from item.kinds


class _Graph:
    """One graph being taken apart."""

    def __init__(self, parallel: ParallelGraph, weights: Weights, loads: Loads | None) -> None:
        self.parallel = parallel
        self.weights = weights
        self.loads = loads
        self.dump = Dump(parallel)
        self.lines, self.names = self.dump.lines, self.dump.names
        self.unplaced = [node for node in self.dump.inputs() if is_weight(node)]
        self.homes = homes(parallel, self.names)

    def blocks(self) -> Blocks:
        """All of it."""
        others = [node for node in self.dump.inputs() if not is_weight(node)]
        inputs = self.dump.listed(self.lines.input, others)
        items: list[Part | Stack] = []
        for sequence in sequences(groups(self.homes)):
            if sequence[0].layer:
                items += self.stacks(sequence)
            else:
                items += self.module("", sequence[0], self.weights_of(sequence[0])).parts
        rest = self.module("", Group("", False, []), self.taken(self.unplaced)).parts
        results = self.dump.listed(self.lines.result, self.parallel.outputs())
        return Blocks((*rest, *items), tuple(inputs), tuple(results), tuple(self.dump.summary()))

    def stacks(self, groups: Sequence[Group]) -> list[Stack]:
        """Layers in a row: one stack if they are of few kinds, or else those that are alike together."""
        kinds: dict[Module, int] = {}
        members = [self.member(group, kinds) for group in groups]
        if len(groups) >= SHORTEST and 2 * len(kinds) <= len(groups):
            return [_stack(list(kinds), members)]
        alike = runs([Layer("", at, member.kind) for at, member in enumerate(members)])
        return [_stack(list(kinds), [members[at] for at in run]) for run in alike]

    def member(self, group: Group, kinds: dict[Module, int]) -> Member:
        """A layer, with what it does among `kinds`."""
        layer, outside = group.layer, dict[str, str]()

        def name(node: Node) -> str:
            text = self.names[node]
            mine = self.homes.get(node, Home(layer)).layer == layer
            if mine and f"{text}.".startswith(f"{layer}."):
                return f"~{text.removeprefix(layer)}"
            return outside.setdefault(text, f"⟨{len(outside)}⟩")

        with self.lines.anew(name, "§") as symbols:
            body = self.module("~", group, self.weights_of(group))
        sizes = tuple(self.lines.number(symbol) for symbol in symbols)
        alive = self.loads.alive(group.nodes) if self.loads is not None else None
        return Member(layer, kinds.setdefault(body, len(kinds)), tuple(outside), sizes, alive)

    def weights_of(self, group: Group) -> list[Node]:
        """The weights of a layer; of a group between layers, those that it is the first to use."""
        found = [node for node in self.unplaced if layer_of(self.names[node]) == group.layer]
        if not group.layer:
            inside = set(group.nodes)
            found = [node for node in found if not inside.isdisjoint(node.users)]
        return self.taken(found)

    def taken(self, weights: Sequence[Node]) -> list[Node]:
        """Weights that are placed now, each once."""
        chosen = [node for node in weights if node in self.unplaced]
        self.unplaced = [node for node in self.unplaced if node not in chosen]
        return chosen

    # Lines.

    def module(self, title: str, group: Group, weights: Sequence[Node]) -> Module:
        """A group's ops and weights, by their modules."""
        within = len(group.layer.split(".")) if group.layer else 0
        placed = [(self.path(node, within), self.weight(node)) for node in weights]
        entries: list[Entry] = [(self.path(node, within), self.op(node)) for node in group.nodes]
        for path, line in reversed(placed):
            entries.insert(_place(path, entries), (path, line))
        return Module(title, _tree(entries))

    def path(self, node: Node, within: int) -> tuple[str, ...]:
        """The modules of a node, below its layer."""
        path = self.homes[node].path if node in self.homes else self.names[node].rpartition(".")[0]
        return tuple(filter(None, path.split(".")))[within:]

    def op(self, node: Node) -> OpLine:
        """The line of an op."""
        row, collective = self.lines.op(node), None
        if node.target in COLLECTIVES:
            collective = COLLECTIVES[node.target], bytes_of(node.meta["val"])
        backward = node.name in self.parallel.backward
        line = OpLine(
            row.name, row.type, row.expression, row.comments, source_line(node), backward, collective
        )
        if self.loads is None:
            return line
        load = self.loads.of(node)
        return replace(
            line, seconds=load.seconds, kept=load.kept, alive=load.alive, ways=self.priced(load.ways)
        )

    def priced(self, ways: Sequence[Price]) -> tuple[Priced, ...]:
        """Ways as text, with the letters of the other lines."""
        return tuple((way.text(self.lines), way.chosen, way.more) for way in ways)

    def weight(self, node: Node) -> WeightLine:
        """The line of a weight."""
        row, full, short = self.lines.input(node), source_of(node).name, self.names[node]
        axes = self.lines.structure(node)
        cuts = {at: ends for at, dim in enumerate(dims_of(node)) if (ends := _ends(dim))}
        notes = row.comments[1 if ", ".join(axes) else 0 :]
        before = full.removesuffix(short)
        ways = self.priced(self.loads.of(node).ways) if self.loads is not None else ()
        return WeightLine(row.name, before, row.type, notes, self.weights.add(full, axes, cuts), ways)


Entry: TypeAlias = tuple[tuple[str, ...], OpLine | WeightLine]


def _ends(dim: Dim) -> list[int]:
    """Where the parts of a concatenation end, but for the last."""
    sizes = [find(part).size for part in segments(dim)]
    if not isinstance(find(dim).form, Concat):
        return []
    return [end for end in accumulate(sizes[:-1]) if isinstance(end, int)]


def _stack(kinds: Sequence[Module], members: Sequence[Member]) -> Stack:
    """These layers, with the kinds that they are of."""
    used = sorted({member.kind for member in members})
    renamed = [replace(member, kind=used.index(member.kind)) for member in members]
    return Stack(tuple(kinds[kind] for kind in used), tuple(renamed))


def _place(path: tuple[str, ...], entries: Sequence[Entry]) -> int:
    """Before the first entry of a weight's module, or of the innermost module around it that there is."""
    shared = [_shared(path, other) for other, _ in entries]
    return shared.index(max(shared)) if shared else 0


def _shared(left: Sequence[str], right: Sequence[str]) -> int:
    """How many steps two paths have in common."""
    differ = (at for at, (one, other) in enumerate(zip(left, right, strict=False)) if one != other)
    return next(differ, min(len(left), len(right)))


def _tree(entries: Sequence[Entry]) -> tuple[Part, ...]:
    """Entries as modules in modules, those that follow one another in a module together."""
    parts: list[Part] = []
    for name, inside in groupby(entries, lambda entry: entry[0][:1]):
        if not name:
            parts += [line for _, line in inside]
            continue
        below = _tree([(path[1:], line) for path, line in inside])
        if len(below) == 1 and isinstance(below[0], Module):
            parts.append(replace(below[0], name=f"{name[0]}.{below[0].name}"))
        else:
            parts.append(Module(name[0], below))
    return tuple(parts)
