"""Gradients averaged over replicas of the tensor-parallel group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from .mesh import Mesh


def average_gradients(model: torch.nn.Module, mesh: Mesh) -> None:
    """Average every gradient over the replicas as soon as it is there: data parallel training."""
    group, size = mesh.replicas, dist.get_world_size(mesh.replicas)

    def average(weight: torch.Tensor) -> None:
        shards: Sequence[Any] = getattr(weight.grad, "shards", None) or (weight.grad,)
        for shard in shards:
            dist.all_reduce(shard, group=group)
            shard.div_(size)

    for weight in model.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(average)
