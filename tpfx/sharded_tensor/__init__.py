"""One tensor to look at, its shards on the devices of a mesh; eager ops on it; a model's weights as such."""

from . import dispatch as dispatch  # a ShardedTensor carries out eager ops by it
from .tensor import ShardedTensor

__all__ = ["ShardedTensor"]
