"""The nodes that move values between layouts in a parallel graph.

They stand for what happens between ranks until `localize` writes it out for one rank; calling one is an
error.
"""

from __future__ import annotations

from typing import NoReturn

import torch

from .layout import Partial, Split


def all_reduce(partial_sum: torch.Tensor, partial: Partial) -> NoReturn:
    """The whole value, from every rank's partial sum."""
    raise NotImplementedError("all_reduce belongs to a parallel graph, which is not run: localize it")


def all_gather(own: torch.Tensor, split: Split) -> NoReturn:
    """The whole value, from every rank's shard."""
    raise NotImplementedError("all_gather belongs to a parallel graph, which is not run: localize it")


def shard(whole: torch.Tensor, split: Split) -> NoReturn:
    """Every rank's shard of a value that every rank has; no collective."""
    raise NotImplementedError("shard belongs to a parallel graph, which is not run: localize it")


def to_partial(whole: torch.Tensor) -> NoReturn:
    """A whole value as partial sums: rank 0 has the value, the others zero; no collective."""
    raise NotImplementedError("to_partial belongs to a parallel graph, which is not run: localize it")


COLLECTIVES = {all_reduce: "all_reduce", all_gather: "all_gather"}
