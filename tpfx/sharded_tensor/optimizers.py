"""What torch's optimizers need: the weights of a compiled model, and state that lies as its weight does.

optimizer = torch.optim.AdamW(model.parameters())    # made before `tpfx.compile`, or loaded from a checkpoint
optimizer.step()                                     # takes over what is sharded by now
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from ..torch_internals.effects import before_every_step
from ..torch_internals.wrapper_subclass import allow_foreach, set_in_place
from .tensor import ShardedTensor

_SUCCESSOR = "_tpfx_successor"


def succeed(original: torch.Tensor, successor: torch.Tensor) -> None:
    """Remember which tensor has taken a weight's place in the model; it gets the gradients of graphs that are
    older."""
    setattr(original, _SUCCESSOR, weakref.ref(successor))
    if original.requires_grad:
        original.register_post_accumulate_grad_hook(_hand_on)


def _hand_on(original: torch.Tensor) -> None:
    successor = getattr(original, _SUCCESSOR, lambda: None)()
    if successor is not None:
        given, original.grad = like(successor, original.grad), None  # type: ignore[arg-type]
        successor.grad = given if successor.grad is None else successor.grad + given


def like(weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What has been computed for a weight, or is remembered of each of its elements, as the weight lies."""
    if not isinstance(weight, ShardedTensor):
        return value.full() if isinstance(value, ShardedTensor) else value
    if not isinstance(value, ShardedTensor):
        value = ShardedTensor.unsharded(weight.mesh, value)
    if weight.placement is not None and value.placement is None:
        value.distribute(weight.placement)
    return value


def forget_successor(original: torch.Tensor) -> bool:
    """The weight is in its own place again; whether it had a successor."""
    found = hasattr(original, _SUCCESSOR)
    if found:
        delattr(original, _SUCCESSOR)
    return found


def adopt(optimizer: Optimizer, *_: Any) -> None:
    """Before a step: take the sharded weights for those that an optimizer was given, and divide its state."""
    for group in optimizer.param_groups:
        weights = group["params"]
        for at, weight in enumerate(weights):
            successor = getattr(weight, _SUCCESSOR, lambda: None)()
            if successor is not None:
                weights[at] = successor
                if weight in optimizer.state:
                    optimizer.state[successor] = optimizer.state.pop(weight)
                weight = successor
            if isinstance(weight, ShardedTensor) and weight.shards is not None:
                _divide(optimizer.state.get(weight, {}), weight)


def release(optimizer: Optimizer) -> None:
    """Take plain weights for the sharded ones that they have taken the place of, and gather their state."""
    adopt(optimizer)
    for weight, state in optimizer.state.items():
        if not isinstance(weight, ShardedTensor):
            for key, value in state.items():
                if isinstance(value, ShardedTensor):
                    state[key] = value.full(weight.device)


def _divide(state: dict[str, Any], weight: ShardedTensor) -> None:
    """Lay out what an optimizer remembers of each element as the weight is."""
    placement = weight.placement
    assert placement is not None
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or not value.dim() or value.shape != weight.shape:
            continue
        if isinstance(value, ShardedTensor):
            if value.placement is placement or value.placement == placement:
                continue
            value = value.gathered()  # a graph has chosen for the weight since
        state[key] = like(weight, value)


# What torch's optimizers and parametrizations need to be told while there are compiled models.
OPTIMIZER_EFFECTS = (before_every_step(adopt), allow_foreach(ShardedTensor), set_in_place(ShardedTensor))
