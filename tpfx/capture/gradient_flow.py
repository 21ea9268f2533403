"""How gradients flow through a joint graph: which of them come from which results, and what they are made of.

flow.reach[0]       # 0b10: the gradient of the first tensor comes from the second result alone
flow.read           # (0, 2): the inputs that the backward part reads as they were in the forward one
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from ..errors import TpfxError
from ..ir.nodes import is_tensor
from ..rules import may_draw
from ..torch_internals.aot import Notes, Tangent, tangents_of, written_inputs
from .nested_results import Nesting, Within
from .sources import is_tangent


@dataclass(frozen=True)
class GradientFlow:
    """How gradients flow through a joint graph. Inputs are counted among those that are tensors.

    Attributes:
        notes: AOTAutograd's notes on the graph.
        tangents: the gradients of results, as the backward part takes them.
        inputs: the position of each tensor among all inputs of the graph.
        reach: for each tensor which tangents its gradient comes from, one bit each; None: it has no gradient.
        read: the tensors that the backward part reads.
        state: the tensors that the graph writes into.
        before: those of them that gradients depend on as they were before the call.
        random: whether the graph may draw random numbers.
        within: for each result that is computed from others, from which; see `Nesting`.
        same: which results are the same tensor as an earlier one.
    """

    notes: Notes
    tangents: Sequence[Tangent]
    inputs: Sequence[int]
    reach: Sequence[int | None]
    read: Sequence[int]
    state: Sequence[int]
    before: Sequence[int]
    random: bool
    within: Within
    same: Mapping[int, int]


@dataclass(frozen=True)
class Dependence:
    """What the gradients of a joint graph come from, as it was captured.

    Attributes:
        names: of the inputs that are tensors.
        inputs: their positions among all inputs.
        reach: as a `GradientFlow` has it.
        values: which of these tensors a gradient depends on.
        random: whether the graph may draw random numbers.
    """

    names: Sequence[str]
    inputs: Sequence[int]
    reach: Sequence[int | None]
    values: Collection[int]
    random: bool

    @staticmethod
    def of(joint: GraphModule, results: int) -> Dependence:
        """Read it off a graph that returns so many results, and then a gradient or None for each input."""
        placeholders = joint.graph.find_nodes(op="placeholder")
        inputs = [node for node in placeholders if not is_tangent(node)]
        tangents = [node for node in placeholders if is_tangent(node)]
        tensors = [at for at, node in enumerate(inputs) if is_tensor(node)]
        returned: Sequence[Any] = joint.graph.output_node().args[0]  # type: ignore[assignment]
        bits = _sources_of(joint, [*tangents, *(inputs[at] for at in tensors)])
        found = [bits.get(returned[results + at]) for at in tensors]
        together = functools.reduce(operator.or_, (one or 0 for one in found), 0) >> len(tangents)
        return Dependence(
            names=[str(inputs[at].target) for at in tensors],
            inputs=tensors,
            reach=[None if one is None else one & ((1 << len(tangents)) - 1) for one in found],
            values={at for at in range(len(tensors)) if together >> at & 1},
            random=any(map(may_draw, _nodes(joint))),
        )

    def flow(self, notes: Notes, backward: GraphModule, nesting: Nesting) -> GradientFlow:
        """The same, once the graph has been parted.

        Raises:
            TpfxError: AOTAutograd's notes do not fit the graph.
        """
        placeholders = backward.graph.find_nodes(op="placeholder")
        tangents, count = tangents_of(notes), sum(map(is_tangent, placeholders))
        if count > len(tangents):
            raise TpfxError(
                f"the backward part takes {count} gradients, and torch names {len(tangents)}; this is a "
                "bug of tpfx, not of the model: please report it"
            )
        taken, written = {str(node.target) for node in placeholders}, written_inputs(notes)
        state = [at for at, position in enumerate(self.inputs) if position in written]
        return GradientFlow(
            notes=notes,
            tangents=tangents,
            inputs=self.inputs,
            reach=self.reach,
            read=[at for at, name in enumerate(self.names) if name in taken],
            state=state,
            before=[at for at in state if at in self.values],
            random=self.random,
            within=nesting.within,
            same=nesting.same,
        )


def _sources_of(module: GraphModule, sources: Sequence[Node]) -> dict[Any, int]:
    """For each node which of some nodes it is computed from, a bit for each of these."""
    bits: dict[Any, int] = {node: 1 << at for at, node in enumerate(sources)}
    for node in module.graph.nodes:
        own = bits.get(node, 0)
        for operand in node.all_input_nodes:
            own |= bits[operand]
        bits[node] = own
    return bits


def _nodes(module: GraphModule) -> Iterator[Node]:
    """The nodes of a graph and of the graphs that it calls."""
    for one in module.modules():
        if isinstance(one, GraphModule):
            yield from one.graph.nodes
