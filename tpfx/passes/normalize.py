"""Bring a captured graph to few ops: linear layers in one piece, biases apart, constants seen through.

view → t → addmm → view   becomes   linear → add
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..ir.nodes import arguments, size_of
from ..ir.provenance import ORIGIN
from ..rules import may_draw, may_draw_inside
from ..rules.views import FULL, bounds
from ..torch_internals.fake import FakeTensor, unset_fake_temporarily

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)


def normalize(graph: Graph) -> None:
    """Rewrite what has a simpler equivalent; the meaning of every output stays."""
    for target, rewrite in _REWRITES.items():
        for node in graph.find_nodes(op="call_function", target=target):
            rewrite(graph, node)
    for view in _VIEWS[:2]:  # what is split may have other strides than the whole
        for node in graph.find_nodes(op="call_function", target=view):
            node.target = aten.reshape.default
    graph.eliminate_dead_code(lambda node: node.is_impure() or may_draw(node) or may_draw_inside(node))


def has_bias(node: Node) -> bool:
    """Whether a call adds a bias to its product, which may be a sum of its own: an addmm without scales."""
    if node.target is aten.addmm.default:
        return bool(node.kwargs.get("beta", 1) == node.kwargs.get("alpha", 1) == 1)
    return node.target is aten.convolution.default and isinstance(node.args[2], Node)


def is_transposed_product(node: Node) -> bool:
    """Whether a call is x @ t(w)."""
    return node.target is aten.mm.default and node.args[1].target is aten.t.default  # type: ignore[union-attr]


def is_view_by_size(node: Node) -> bool:
    """Whether a call is a view to other sizes, which asks for strides that shards may not have."""
    return node.target in _VIEWS[:2]


def _insert(
    graph: Graph, before: Node, target: Any, args: tuple[Any, ...], value: torch.Tensor, **options: Any
) -> Node:
    with graph.inserting_before(before):
        node = graph.call_function(target, args, options)
    node.meta = {key: before.meta[key] for key in ORIGIN if key in before.meta}
    node.meta["val"] = value
    return node


def _replace(node: Node, other: Node) -> None:
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def _addmm(graph: Graph, node: Node) -> None:
    """bias + x @ w, its scales 1: a product and a sum, so that the bias joins the sum only once."""
    if not has_bias(node):
        return
    bias, x, weight = node.args
    product = _insert(graph, node, aten.mm.default, (x, weight), node.meta["val"])
    total = _insert(graph, node, aten.add.Tensor, (product, bias), node.meta["val"])
    _replace(node, total)
    assert isinstance(bias, Node)
    _hoist(graph, total, bias)
    _mm(graph, product)


def _convolution(graph: Graph, node: Node) -> None:
    """A convolution and a sum, so that the bias joins the sum only once."""
    if not has_bias(node):
        return
    x, weight, bias, *settings = node.args
    assert isinstance(bias, Node)
    value, slides = node.meta["val"], node.meta["val"].dim() - 2
    shape = [bias.meta["val"].shape[0], *[1] * slides]
    column = _insert(graph, node, aten.view.default, (bias, shape), bias.meta["val"].view(shape))
    product = _insert(graph, node, aten.convolution.default, (x, weight, None, *settings), value)
    _replace(node, _insert(graph, node, aten.add.Tensor, (product, column), value))


def _convolution_backward(graph: Graph, node: Node) -> None:
    """The gradient of a bias, which was made a sum of its own, is a sum of its own too."""
    gradient, x, weight, _, *settings, mask = node.args
    assert isinstance(gradient, Node)
    found = [user for user in node.users if user.args[1] == 2]
    if not mask[2] or not found:  # type: ignore[index]
        return
    value = gradient.meta["val"]
    others = [dim for dim in range(value.dim()) if dim != 1]
    total = _insert(graph, node, aten.sum.dim_IntList, (gradient, others), found[0].meta["val"])
    for user in found:
        _replace(user, total)
    node.args = (gradient, x, weight, None, *settings, [*mask[:2], False])  # type: ignore[index,misc]
    node.meta["val"] = (*node.meta["val"][:2], None)


def _hoist(graph: Graph, total: Node, bias: Node) -> None:
    """Add the bias after the view that undoes the flattening: product and view may then become one linear."""
    users = list(total.users)
    if len(users) != 1 or users[0].target not in _VIEWS or not _unflattens(users[0]):
        return
    product, back = total.args[0], users[0]
    assert isinstance(product, Node)
    value = back.meta["val"]  # the view that stays keeps its meaning: the product has one of its own
    early = _insert(graph, back, back.target, (product, *back.args[1:]), value)
    _replace(back, _insert(graph, back, aten.add.Tensor, (early, bias), value))
    graph.erase_node(total)


def _unflattens(view: Node) -> bool:
    source, result = view.args[0].meta["val"], view.meta["val"]  # type: ignore[union-attr]
    return (
        source.dim() == 2
        and result.dim() > 1
        and bool(size_of(source.shape[-1]) == size_of(result.shape[-1]))
    )


def _mm(graph: Graph, node: Node) -> None:
    """view(x) @ t(w), viewed back: one linear."""
    if not is_transposed_product(node):
        return
    x, weight = node.args
    assert isinstance(x, Node) and isinstance(weight, Node)
    end, value = node, node.meta["val"]
    if x.target in _VIEWS and len(node.users) == 1:
        back, source = next(iter(node.users)), x.args[0]
        assert isinstance(source, Node)
        if back.target in _VIEWS and _flattens(source.meta["val"], node, back.meta["val"]):
            x, end, value = source, back, back.meta["val"]
    linear = _insert(graph, end, aten.linear.default, (x, weight.args[0]), value)
    _replace(end, linear)
    if end is not node:
        graph.erase_node(node)


def _flattens(source: torch.Tensor, product: Node, result: torch.Tensor) -> bool:
    """Whether x was flattened to two dimensions and the product is viewed back as x was."""
    flat = product.args[0].meta["val"]  # type: ignore[union-attr]
    lead = [size_of(extent) for extent in source.shape[:-1]]
    return (
        size_of(source.shape[-1]) == size_of(flat.shape[-1])
        and lead == [size_of(extent) for extent in result.shape[:-1]]
        and size_of(result.shape[-1]) == size_of(product.meta["val"].shape[-1])
    )


def _cat(graph: Graph, node: Node) -> None:
    """Empty operands go: a cache that holds nothing yet."""
    given: Sequence[Node] = node.args[0]  # type: ignore[assignment]
    kept = [item for item in given if not _empty(item.meta["val"])]
    if len(kept) == len(given) or not kept or kept[0].meta["val"].dtype != node.meta["val"].dtype:
        return
    if len(kept) == 1:
        _replace(node, _insert(graph, node, aten.clone.default, (kept[0],), node.meta["val"]))
    else:
        node.args = (kept, *node.args[1:])


def _copy(graph: Graph, node: Node) -> None:
    """What is copied into a tensor of the same sizes is the copy: it takes the dtype alone."""
    into, source = arguments(node)["self"], arguments(node)["src"]
    before, after = source.meta["val"], into.meta["val"]
    if before.device != after.device or list(map(size_of, before.shape)) != list(map(size_of, after.shape)):
        return
    if before.dtype == after.dtype:
        made = _insert(graph, node, aten.clone.default, (source,), node.meta["val"])
    else:
        value, dtype = node.meta["val"], after.dtype
        made = _insert(graph, node, aten._to_copy.default, (source,), value, dtype=dtype)
    _replace(node, made)


def _slice_scatter(graph: Graph, node: Node) -> None:
    """Writes that cover a dimension, one after another or in turns: what they write, joined."""
    at, before = _slice_of(node)[0], node
    written: list[tuple[range, Node]] = []
    while before.target is node.target and _slice_of(before)[0] == at:
        part, source = _slice_of(before)[1], before.args[1]
        assert isinstance(source, Node)
        if part is None or source.meta["val"].dtype != node.meta["val"].dtype:
            return
        written = sorted([*written, (part, source)], key=lambda one: one[0].start)
        joined = _joined(graph, node, at, written)
        if joined is not None:
            return _replace(node, joined)
        before = before.args[0]  # type: ignore[assignment]


def _joined(graph: Graph, node: Node, at: int, written: Sequence[tuple[range, Node]]) -> Node | None:
    """Tensors in the places that they have along a dimension; None: these are not all of its places."""
    places, sources = [place for place, _ in written], [source for _, source in written]
    value = node.meta["val"]
    shape, size = [*value.shape], size_of(value.shape[at])
    starts, stops = [place.start for place in places], [place.stop for place in places]
    if [0, *stops] == [*starts, size] and all(place.step == 1 for place in places):
        return _insert(graph, node, aten.cat.default, (sources, at), value)
    turns = [range(first, size, len(places)) for first in range(len(places))]
    if places == turns and size % len(places) == 0 and all(type(extent) is int for extent in shape):
        beside = torch.stack([source.meta["val"] for source in sources], at + 1)
        stacked = _insert(graph, node, aten.stack.default, (sources, at + 1), beside)
        return _insert(graph, node, aten.reshape.default, (stacked, shape), value)
    return None


def _slice_of(node: Node) -> tuple[int, range | None]:
    """The dimension that a slice_scatter writes to, and its indices; None: they are not numbers."""
    args, size = arguments(node), node.meta["val"].shape
    at = args["dim"] % len(size)
    limits = bounds(args["start"], args["end"], size_of(size[at]))
    return at, range(*limits, args["step"]) if limits and isinstance(args["step"], int) else None


def _empty(value: torch.Tensor) -> bool:
    return value.dim() == 1 and isinstance(value.shape[0], int) and value.shape[0] == 0


def _index(graph: Graph, node: Node) -> None:
    """x[:, [-2]], one constant index: a slice."""
    source, indices = node.args
    given = [position for position, item in enumerate(indices) if item is not None]  # type: ignore[arg-type]
    constant = _constant(graph, indices[given[0]]) if len(given) == 1 else None  # type: ignore[index]
    if constant is None or constant.dim() != 1 or constant.numel() != 1 or constant.dtype != torch.int64:
        return
    with unset_fake_temporarily():
        start = int(constant.item())
    stop = start + 1 if start != -1 else FULL
    _replace(node, _insert(graph, node, aten.slice.Tensor, (source, given[0], start, stop), node.meta["val"]))


def _unsafe_index(graph: Graph, node: Node) -> None:
    """The same without a check of the indices, as upsampling reads pixels."""
    node.target = aten.index.Tensor
    _index(graph, node)


def _constant(graph: Graph, node: Any) -> torch.Tensor | None:
    """The value of a tensor that is part of the graph itself."""
    while isinstance(node, Node) and node.target in (aten.lift_fresh_copy.default, aten.alias.default):
        node = node.args[0]
    module = graph.owning_module
    if not isinstance(node, Node) or node.op != "get_attr" or not isinstance(module, GraphModule):
        return None
    value = getattr(module, str(node.target), None)
    fake = isinstance(value, FakeTensor)
    return value if isinstance(value, torch.Tensor) and not fake else None


def _same_view(graph: Graph, node: Node) -> None:
    """A view of the same shape is nothing."""
    source = node.args[0]
    assert isinstance(source, Node)
    before, after = source.meta["val"], node.meta["val"]
    if [size_of(extent) for extent in before.shape] == [size_of(extent) for extent in after.shape]:
        _replace(node, source)


def _alias(graph: Graph, node: Node) -> None:
    source = node.args[0]
    assert isinstance(source, Node)
    if source.op == "call_function":
        _replace(node, source)


_REWRITES: dict[Any, Callable[[Graph, Node], None]] = {
    aten.addmm.default: _addmm,
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.copy.default: _copy,
    aten.slice_scatter.default: _slice_scatter,  # after what it writes is no more a copy into what was there
    aten.cat.default: _cat,
    aten.index.Tensor: _index,
    aten._unsafe_index.Tensor: _unsafe_index,
    aten.view.default: _same_view,
    aten.alias.default: _alias,
    aten.mm.default: _mm,  # last: it sees through no alias
}
