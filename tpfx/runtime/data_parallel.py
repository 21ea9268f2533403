"""Gradients averaged over replicas of the tensor-parallel group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from .mesh import Mesh


def average_gradients(model: torch.nn.Module, mesh: Mesh) -> None:
    """Average every gradient over the replicas as soon as it is there: data parallel training.

    Weights of which that has been said already are left out; `stop_averaging` takes it back.
    """
    group, size = mesh.replicas, dist.get_world_size(mesh.replicas)

    def average(weight: torch.Tensor) -> None:
        shards: Sequence[Any] = getattr(weight.grad, "shards", None) or (weight.grad,)
        for shard in shards:
            dist.all_reduce(shard, group=group)
            shard.div_(size)

    for weight in model.parameters():
        if weight.requires_grad and "averaging" not in vars(weight):
            weight.averaging = weight.register_post_accumulate_grad_hook(average)  # type: ignore[attr-defined]


def stop_averaging(model: torch.nn.Module) -> None:
    """Leave gradients as they are from now on."""
    for weight in model.parameters():
        handle: Any = vars(weight).pop("averaging", None)
        if handle is not None:
            handle.remove()
