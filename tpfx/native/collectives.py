"""Which collectives of a rank's graph the ranks of one process carry out among themselves, in C++."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

import torch
from torch.fx import Node

from ..torch_internals.fx import OpOverload

c10d = torch.ops._c10d_functional


class Meeting(Protocol):
    """Where the rank threads of one process meet."""

    @property
    def native(self) -> Any:
        """The extension's `Meeting`."""

    @property
    def names(self) -> Collection[str]:
        """The group names by which graphs mean these ranks."""

    def error(self, why: str, rank: int, node: str) -> Exception:
        """What a rank raises that has left the collective `node` without its result."""


def is_wait(node: Node) -> bool:
    """Whether a node waits for a collective, which one in C++ has done."""
    return node.target is c10d.wait_tensor.default


def collective_of(extension: Any, node: Node, names: Collection[str]) -> tuple[Any, ...] | None:
    """The leading arguments of `Program.add_collective` for a node; None where it is none of these ranks'."""
    target = node.target
    if not isinstance(target, OpOverload) or target.namespace != "_c10d_functional" or node.kwargs:
        return None
    if node.args[-1] not in names:
        return None
    kinds, how = extension.Kind, extension.Reduction.__members__
    none, given = how["none"], node.args
    match node.target:
        case c10d.all_reduce.default | c10d.all_reduce_.default:
            in_place = node.target is c10d.all_reduce_.default
            return kinds.all_reduce, how[str(given[1])], in_place, 0, [], []
        case c10d.all_gather_into_tensor.default:
            return kinds.all_gather, none, False, 0, [], []
        case c10d.reduce_scatter_tensor.default:
            return kinds.reduce_scatter, how[str(given[1])], False, 0, [], []
        case c10d.broadcast.default:
            return kinds.broadcast, none, False, given[1], [], []
        case c10d.all_to_all_single.default if _are_ints(given[1]) and _are_ints(given[2]):
            return kinds.all_to_all, none, False, 0, given[1], given[2]
    return None


def _are_ints(value: Any) -> bool:
    return all(type(one) is int for one in value)
