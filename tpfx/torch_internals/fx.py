"""fx graphs, the ops in them, and nested containers of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._library.custom_ops
import torch.fx._lazy_graph_module
from torch.utils import _pytree
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map
from torch.utils._pytree import tree_map_only as tree_map_only

OpOverload = torch._ops.OpOverload
OpOverloadPacket = torch._ops.OpOverloadPacket
HigherOrderOperator = torch._ops.HigherOrderOperator

# A graph module that writes its Python code only once something asks for it, or runs it.
LazyGraphModule: Any = torch.fx._lazy_graph_module._LazyGraphModule


def code_of(module: torch.fx.GraphModule) -> Callable[..., Any]:
    """A graph module's `forward`, its Python code written now at the latest."""
    LazyGraphModule.force_recompile(module)
    return module.forward


def forget_erased(graph: torch.fx.Graph) -> None:
    """Let go of nodes that a graph no longer has: it remembers what it has named, and so whatever they hold.

    A graph as captured has had ten times its nodes, for arithmetic of sizes that nothing uses.
    """
    named, nodes = graph._graph_namespace._obj_to_name, set(graph.nodes)
    for gone in [one for one in named if isinstance(one, torch.fx.Node) and one not in nodes]:
        del named[gone]


def overload_of(op: Any) -> OpOverload | None:
    """The one overload that an op of torch.library stands for, if it does."""
    op = getattr(op, "_opoverload", op)  # what torch.library.custom_op returns
    if isinstance(op, OpOverloadPacket):
        names = op.overloads()
        op = getattr(op, names[0]) if len(names) == 1 else None
    return op if isinstance(op, OpOverload) else None


def module_of(op: OpOverload) -> str | None:
    """The module of Python whose import defines an op; None of C++'s, and where that is not known."""
    packet = op.name().partition(".")[0]
    defined: Any = torch._library.custom_ops.OPDEFS.get(packet)
    return None if defined is None else str(defined._init_fn.__module__)


def is_leaf(value: Any) -> bool:
    """Whether walks over containers do not look inside: its class is none of a container that torch knows."""
    return type(value) not in _pytree.SUPPORTED_NODES
