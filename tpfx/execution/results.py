"""What a call of a model returns, gathered."""

from __future__ import annotations

from typing import Any

from ..sharded_tensor import ShardedTensor
from ..torch_internals.fx import is_leaf, tree_map_only


def gather_tree(value: Any) -> Any:
    """The same nest of containers with whole tensors in the place of sharded ones.

    Those that gradients may flow back to stay: any op on one is right, and most are never looked at.
    """
    if _is_gathered(value):
        return value
    return tree_map_only(ShardedTensor, lambda one: one if one.requires_grad else one.gathered(), value)


def _is_gathered(value: Any) -> bool:
    """Whether there is nothing to gather, as far as a short look tells: what models return has few parts."""
    if isinstance(value, dict):
        return all(map(_is_gathered, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_gathered, value))
    return is_leaf(value) and not isinstance(value, ShardedTensor)
