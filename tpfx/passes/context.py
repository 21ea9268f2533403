"""What the passes of one graph share beside the graph itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..ir.parallel_graph import Solution
from ..ir.splits import Splits
from ..planning import Topology
from .apply_plan import GraphChoices


class Kept(Protocol):
    """Where choices are kept for later processes."""

    def get(self, key: str) -> GraphChoices | None:
        """What was kept of a graph, by a key that says all that choosing goes by."""

    def put(self, key: str, choices: GraphChoices) -> None:
        """Keep what was chosen."""


@dataclass
class Context:
    """What the passes of one graph share.

    Attributes:
        ranks: how many devices.
        topology: what collectives and arithmetic cost.
        choices: choices made before, by the fingerprints of the graphs that they are for.
        kept: where choices are kept for later processes, if anywhere.
        splits: the splits that are considered.
        fingerprint: that of the graph, as inference leaves it.
        solution: what the chooser proved.
        to_keep: the key of choices that were made now, to keep them by.
    """

    ranks: int
    topology: Topology = field(default_factory=Topology)
    choices: Mapping[str, GraphChoices] = field(default_factory=dict)
    kept: Kept | None = None
    splits: Splits | None = None
    fingerprint: str = ""
    solution: Solution | None = None
    to_keep: str = ""

    @property
    def considered(self) -> Splits:
        """The splits that are considered, which `list_splits` has found."""
        assert self.splits is not None, "list_splits comes first"
        return self.splits
