"""The ways in which a rank carries out an op, where a call of the op on its shards is not enough.

`lowering.ops` implements every one of them; the rows of the table of ops name them.
"""

from __future__ import annotations

from enum import Enum


class Lowering(Enum):
    """What writes the nodes of an op into a rank's graph."""

    BY_BLOCK = "by_block"  # with the scales of the blocks in which the rank's numbers lie
    CONVOLUTION = "convolution"  # with this rank's number of groups
    EMBEDDING = "embedding"  # looks up the rows that the rank owns, zeros for the others
    EMBEDDING_BACKWARD = "embedding_backward"  # the gradient of the rows that the rank owns
    EXTREME = "extreme"  # of no elements, what loses against every other
    GATHER = "gather"  # the elements that the rank owns, zeros for the others
    GROUPED_MM = "grouped_mm"  # rows padded to 16 bytes
    GROUP_NORM = "group_norm"  # with this rank's number of groups and channels
    LINEAR = "linear"  # the fastest kernel of the device
    MEAN = "mean"  # the rank's sum, by the size of the whole dimension
    PACKED_LINEAR = "packed_linear"  # with the shape of the rank's shard of the packed matrix
    SCATTER = "scatter"  # writes what falls into the rank's shard
    SELECT = "select"  # the index in the rank's shard
    SLICE = "slice"  # the limits in the rank's shard
    SLICE_BACKWARD = "slice_backward"  # the limits and the shape of the rank's shard
    SPLIT = "split"  # the sizes of the pieces in the rank's shard
    SQUEEZE = "squeeze"  # what is of size 1 in the whole, not what is so on the rank
    UNPACKED = "unpacked"  # with the shape of the rank's shard; of nothing, nothing
