"""Layers that are alike are traced by AOTAutograd three times, however many there are; the others are copies.

    folded = fold(module)            # None where no layers are alike
    folded.module                    # the same without the layers after the third, but for their inputs
    unfold = folded.unfolding(fakes)
    unfold(lowered)                  # puts them back into what AOTAutograd made of it

What later nodes take of a layer that is left out is meanwhile a copy of what the third has in its place, a
stand-in. That the third layer does for the others is not taken for granted: it must be, node by node, what
AOTAutograd made of the second; nothing may be written to, and nothing learnt of sizes that vary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..ir.alike import BASE, Alike, Comparison, Other, find_alike
from ..ir.nodes import is_mutable, is_tensor
from ..ir.provenance import ORIGIN
from ..torch_internals.dynamo import as_of_dynamo
from ..torch_internals.fake import assumptions, expression, renamed

aten = torch.ops.aten

# Under "custom", which AOTAutograd hands on: the place of one of Dynamo's nodes, and whether it stands in.
_CONSTANT = re.compile(r"_tensor_constant\d+$")  # how AOTAutograd names what a graph makes of numbers
_SMALL = 64  # elements of a constant that is compared

_CUSTOM, _PLACE, _STANDS_IN = "custom", "tpfx_place", "tpfx_stands_in"


class NotAlike(Exception):
    """Layers that are alike are not so any more where AOTAutograd has traced them: all must be traced."""


@dataclass(frozen=True)
class Folded:
    """One of Dynamo's graphs without the layers that are like the third one.

    Attributes:
        module: the graph.
        alike: the layers in the whole graph.
        inputs: the inputs of the whole graph.
    """

    module: GraphModule
    alike: Alike
    inputs: Sequence[Node]

    def unfolding(self, fakes: Sequence[Any]) -> Callable[[GraphModule], None]:
        """What puts the layers that were left out into what AOTAutograd lowers the graph to.

        Args:
            fakes: the inputs that it is about to do so with.

        Raises:
            NotAlike: in turn, that the third layer does not do for the others.
        """
        nothing_learnt = assumptions(fakes)
        own = any(each.renaming for each in self.alike.others.values())

        def unfold(lowered: GraphModule) -> None:
            if own and not nothing_learnt():
                raise NotAlike
            _Lowered.of(lowered, self).put_back()
            _number_constants(lowered)
            lowered.recompile()

        return unfold


def fold(module: GraphModule) -> Folded | None:
    """Leave the layers out of a graph that are like the third one; None where that spares little."""
    alike = find_alike(module.graph)
    if alike is None or any("unbacked_bindings" in node.meta for node in alike.body):
        return None  # a number that is read from a tensor is another in each layer
    graph = Graph()
    made: dict[Node, Node] = {}
    for node in module.graph.nodes:
        place = alike.places.get(node, -1)
        if not alike.is_left_out(place):
            made[node] = graph.node_copy(node, made.__getitem__)
            made[node].meta[_CUSTOM] = {**node.meta.get(_CUSTOM, {}), _PLACE: place}
        elif not all(alike.is_left_out(alike.places.get(user, -1)) for user in node.users):
            if not _is_unwritten(node.meta.get("example_value")):
                return None
            made[node] = graph.call_function(aten.clone.default, (made[alike.in_layer(place, BASE)],))
            made[node].meta[_CUSTOM] = {_PLACE: place, _STANDS_IN: True}
    inputs = module.graph.find_nodes(op="placeholder")
    return Folded(as_of_dynamo(GraphModule(module, graph), module), alike, inputs)


def _is_unwritten(value: Any) -> bool:
    """Whether a value is a tensor that nothing has written into: what stands in for it would not tell."""
    return isinstance(value, torch.Tensor) and not value.is_inference() and value._version == 0


@dataclass
class _Lowered:
    """What AOTAutograd has made of a folded graph.

    Attributes:
        module: the ATen graph.
        alike: the layers.
        inputs: its inputs by those of Dynamo's graph.
        layers: the nodes of each layer that was traced.
        stand_ins: what stands in for nodes of layers that were left out, by their place.
    """

    module: GraphModule
    alike: Alike
    inputs: dict[Node, Node]
    layers: list[list[Node]] = field(default_factory=lambda: [[] for _ in range(BASE + 1)])
    stand_ins: dict[Node, int] = field(default_factory=dict)

    @staticmethod
    def of(module: GraphModule, folded: Folded) -> _Lowered:
        """Find the layers in a lowered graph.

        Raises:
            NotAlike: they lie otherwise in it.
        """
        placeholders = module.graph.find_nodes(op="placeholder")
        if len(placeholders) != len(folded.inputs):
            raise NotAlike
        made = _Lowered(module, folded.alike, dict(zip(folded.inputs, placeholders, strict=True)))
        latest = -1
        for node in module.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            if is_mutable(node):
                raise NotAlike
            custom = node.meta.get(_CUSTOM, {})
            place = custom.get(_PLACE, len(folded.alike.body))
            if custom.get(_STANDS_IN):
                made.stand_ins[node] = place
                continue
            layer = folded.alike.layer_of(place)
            if layer < latest:
                raise NotAlike
            latest = layer
            if 0 <= layer <= BASE:
                made.layers[layer].append(node)
        return made

    def put_back(self) -> None:
        """Copy the third layer for each that was left out, in the place of what stands in for them.

        Raises:
            NotAlike: the third layer is not to the second what the fourth is to the third.
        """
        twins, shared = self._twins()
        self._require_stand_ins_alone()
        before: dict[Node, Node] = {node: node for node in self.layers[BASE]}
        after = self.layers[BASE][-1]
        for layer in range(BASE + 1, self.alike.count):
            view = _View(self.alike.others[layer].in_inputs(self.inputs), shared, twins, before)
            for node in self.layers[BASE]:
                with self.module.graph.inserting_after(after):
                    after = view.made[node] = self.module.graph.node_copy(node, view.of)
                after.meta = self._meta_of(node, layer, view)
            for node in [one for one, place in self.stand_ins.items() if self.alike.layer_of(place) == layer]:
                node.replace_all_uses_with(view.in_place_of(node))
                self.module.graph.erase_node(node)
            before = view.made
        for node in self.module.graph.nodes:
            _forget_place(node)

    def _twins(self) -> tuple[dict[Node, Node], set[Node]]:
        """What each node of the second layer is in the third; and inputs, sizes too, that the two share.

        Raises:
            NotAlike: the two layers are not the same.
        """
        first, second, base = self.layers
        if not base:
            raise NotAlike
        twins = dict(zip(second, base, strict=False))
        earlier = {_place_of(node): node for node in first}  # the last one of each place

        def pair(node: Node, other: Node) -> bool:
            if node in twins:
                return earlier.get(_place_of(node) - self.alike.period) is other
            known = twins.get(other)
            return node is other if known is None else known is node

        other = self.alike.others[1].in_inputs(self.inputs)
        comparison = Comparison("val", pair, other, self._target_of)
        if not comparison.holds(base, second):
            raise NotAlike
        return twins, {one for one, twin in other.inputs.items() if one is twin}

    def _target_of(self, node: Node) -> Any:
        """What a node calls; of a constant what it is."""
        if node.op != "get_attr":
            return node.target
        value = getattr(self.module, str(node.target))
        plain = type(value) is torch.Tensor and value.device.type == "cpu" and value.numel() <= _SMALL
        return (value.dtype, tuple(value.shape), str(value.tolist())) if plain else node.target

    def _require_stand_ins_alone(self) -> None:
        """Refuse graphs in which a size that a layer computes is used after all layers.

        Raises:
            NotAlike: one is.
        """
        inside = {*self.layers[BASE], *self.layers[BASE - 1], *self.stand_ins}
        for node in (*self.layers[BASE - 1], *self.layers[BASE]):
            if not is_tensor(node) and not inside.issuperset(node.users):
                raise NotAlike

    def _meta_of(self, node: Node, layer: int, view: _View) -> dict[str, Any]:
        """What is known of a copy: where it comes from, and its value, of the sizes of its layer."""
        origin = self.alike.in_layer(_place_of(node), layer).meta
        known = {key: origin[key] for key in ORIGIN if key in origin and key in node.meta}
        return {**node.meta, **known, "val": renamed(node.meta.get("val"), view.other.renaming)}


class _View:
    """A layer that was left out, as it is copied.

    Args:
        other: how it differs from the base.
        shared: the inputs that the second layer and the base share.
        twins: what each node of the second layer is in the base.
        before: the layer before it: what each node of the base is in it.
    """

    def __init__(
        self, other: Other, shared: Set[Node], twins: Mapping[Node, Node], before: Mapping[Node, Node]
    ) -> None:
        self.other, self.shared, self.twins, self.before = other, shared, twins, before
        self.made: dict[Node, Node] = {}

    def of(self, node: Node) -> Node:
        """What a node that the base takes is to this layer.

        Raises:
            NotAlike: that is not known of an input.
        """
        if node in self.made:
            return self.made[node]
        if node.op == "placeholder":
            own = self.other.inputs.get(node, node)
            if own is node and (node not in self.shared or self._is_of_this(node)):
                raise NotAlike
            return own
        return self.before[self.twins[node]] if node in self.twins else node

    def _is_of_this(self, node: Node) -> bool:
        """Whether an input is, or has, a size that is another one in this layer."""
        value = node.meta["val"]
        return renamed(value, self.other.renaming) is not value

    def in_place_of(self, stand_in: Node) -> Node:
        """What a node stands in for.

        Raises:
            NotAlike: that lies otherwise in memory, or later nodes know it by other sizes.
        """
        (base,) = stand_in.args
        assert isinstance(base, Node)
        given, taken = base.meta["val"], stand_in.meta["val"]
        known = not self._is_of_this(base) or all(map(_is_output, stand_in.users))
        if _strides(given) != _strides(taken) or not known:
            raise NotAlike
        return self.of(base)


def _number_constants(module: GraphModule) -> None:
    """Give each constant that a graph makes a name of its own, by the order in which it makes them."""
    nodes = [node for node in module.graph.find_nodes(op="get_attr") if _CONSTANT.match(str(node.target))]
    values = [getattr(module, str(node.target)) for node in nodes]
    for name in {str(node.target) for node in nodes}:
        delattr(module, name)
    for at, (node, value) in enumerate(zip(nodes, values, strict=True)):
        node.target = f"_tensor_constant{at}"
        setattr(module, node.target, value)


def _strides(value: torch.Tensor) -> list[Any]:
    return [expression(one) for one in value.stride()]


def _is_output(node: Node) -> bool:
    return node.op == "output"


def _place_of(node: Node) -> int:
    place: int = node.meta[_CUSTOM][_PLACE]
    return place


def _forget_place(node: Node) -> None:
    kept = {key: value for key, value in node.meta.get(_CUSTOM, {}).items() if key != _PLACE}
    if kept:
        node.meta[_CUSTOM] = kept
    else:
        node.meta.pop(_CUSTOM, None)
