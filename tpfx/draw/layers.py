"""The ops of a planned graph by layer, and the layers that follow one another.

groups       layers.0, layers.1, layers.2, and between them whatever belongs to no layer
sequences    layers.0 to layers.2 together, or back from layers.2 to layers.0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from ..dump.node_names import Names
from ..ir.parallel_graph import ParallelGraph
from ..ir.provenance import layer_of, stem_of


@dataclass
class Group:
    """Ops that follow one another in one layer; `layer` is empty between layers."""

    layer: str
    backward: bool
    nodes: list[Node]


@dataclass(frozen=True)
class Home:
    """Where an op belongs: the path of a module, and whether it computes gradients for it."""

    path: str = ""
    backward: bool = False

    @property
    def layer(self) -> str:
        """The part of the path up to its first number."""
        return layer_of(self.path)


def homes(parallel: ParallelGraph, names: Names) -> dict[Node, Home]:
    """Where each op belongs, in order. Of the backward pass, that is the module whose gradients it computes;
    an op of which nothing is known belongs to that of the op before.

    An op that several layers use, and that uses nothing of its own layer, was traced in the first of them but
    belongs to none.
    """
    found: dict[Node, Home] = {}
    at = Home()
    for node in parallel.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        forward = "" if names.path(node) else names.forward_path(node)
        if at.backward or forward:
            at = Home(forward or at.path, True)
        else:
            at = Home(names.path(node))
            at = Home() if _serves_others(node, at, names, found) else at
        found[node] = at
    return found


def _serves_others(node: Node, home: Home, names: Names, found: dict[Node, Home]) -> bool:
    """Whether other layers use an op too, and it uses nothing of its own layer."""
    users = {layer_of(names.path(user)) for user in node.users if user.op != "output"}
    within = {
        layer_of(names[operand]) if operand.op == "placeholder" else found[operand].layer
        for operand in node.all_input_nodes
    }
    return bool(home.layer) and not users <= {"", home.layer} and home.layer not in within


def groups(found: dict[Node, Home]) -> list[Group]:
    """The ops in order, cut where another layer begins; those that were traced within a layer and belong to
    none stand before it, after what they use."""
    made: list[Group] = []
    for node, home in found.items():
        if made and (made[-1].layer, made[-1].backward) == (home.layer, home.backward):
            made[-1].nodes.append(node)
        elif made and not home.layer and not home.backward and _is_foreign(node, made[-1]):
            _lift(node, made)
        else:
            made.append(Group(home.layer, home.backward, [node]))
    return made


def _is_foreign(node: Node, group: Group) -> bool:
    """Whether an op stands in a layer that it does not use, and that is not over."""
    return not set(node.all_input_nodes) & set(group.nodes)


def _lift(node: Node, made: list[Group]) -> None:
    """Put an op between the layers, after what it uses."""
    operands = set(node.all_input_nodes)
    for group in reversed(made):
        if not group.layer:
            group.nodes.append(node)
            return
        if not operands.isdisjoint(group.nodes):
            break
    made.insert(len(made) - 1, Group("", False, [node]))


def sequences(found: Sequence[Group]) -> list[list[Group]]:
    """Groups of layers that follow one another, up or down, together; others alone."""
    together: list[list[Group]] = []
    for group in found:
        if together and _follows(together[-1], group):
            together[-1].append(group)
        else:
            together.append([group])
    return together


def _follows(sequence: Sequence[Group], group: Group) -> bool:
    """Whether a layer goes on with a sequence: the same stem, one number up, or one down."""
    stems = [stem_of(each.layer) for each in (*sequence, group)]
    numbers = [number for _, number in stems if number is not None]
    if len(numbers) < len(stems) or (stems[-1][0], group.backward) != (stems[-2][0], sequence[-1].backward):
        return False
    step = numbers[-1] - numbers[-2]
    return abs(step) == 1 and step == numbers[1] - numbers[0]
