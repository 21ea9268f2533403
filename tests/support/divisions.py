"""Divisions of a dimension of 6 over three ranks: uneven, empty, packed and overlapping ones."""

from __future__ import annotations

from tpfx.ir.shards import Pieces

DIVISIONS: dict[str, tuple[Pieces, ...]] = {
    "uneven": (((0, 1),), ((1, 4),), ((4, 6),)),
    "one rank has nothing": (((0, 4),), (), ((4, 6),)),
    "one rank has it all": ((), ((0, 6),), ()),
    "packed": (((0, 1), (3, 4)), ((1, 2), (4, 5)), ((2, 3), (5, 6))),
    "overlapping": (((0, 3),), ((2, 5),), ((2, 6),)),
}
