"""Two CPU devices, and how they may hold a tensor of SHAPE.

tensor = sharded(torch.randn(SHAPE), PLACEMENTS["rows"])
agree(tensor)
whole(tensor)
"""

from __future__ import annotations

import torch

from tpfx.ir.shards import Shards
from tpfx.kernels.slices import take
from tpfx.runtime.mesh import Mesh
from tpfx.sharded_tensor.tensor import ShardedTensor

CPUS = ["cpu", "cpu"]
MESH = Mesh((torch.device("cpu"),) * 2)
SHAPE = (4, 6, 3)

# How each rank holds a tensor of SHAPE: (dim, intervals of rank 0 and of rank 1).
PLACEMENTS: dict[str, Shards | None] = {
    "undivided": None,
    "replicated": Shards(),
    "rows": Shards(((0, (((0, 3),), ((3, 4),))),)),
    "packed": Shards(((1, (((0, 1), (3, 4)), ((1, 3), (4, 6)))),)),
    "overlapping": Shards(((1, (((0, 4),), ((2, 6),))),)),
    "two dims": Shards(((0, (((0, 2),), ((2, 4),))), (2, (((0, 3),), ((0, 3),))))),
    "one rank has it all": Shards(((2, (((0, 3),), ())),)),
}


def sharded(tensor: torch.Tensor, placement: Shards | None) -> ShardedTensor:
    """A copy of a tensor, held as told; None: it is not divided yet."""
    made = ShardedTensor.unsharded(MESH, tensor.clone())
    if placement is not None:
        made.distribute(placement)
    return made


def agree(tensor: ShardedTensor) -> None:
    """Assert that every copy of every element is the same."""
    if tensor.shards is None:
        return
    assert tensor.placement is not None
    for rank, shard in enumerate(tensor.shards):
        assert torch.equal(shard, take(tensor.full(), tensor.placement.dims, rank))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor gathered; any other as it is."""
    return tensor.full() if isinstance(tensor, ShardedTensor) else tensor
