"""What the passes of one graph share beside the graph itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..ir.parallel_graph import Solution
from ..ir.splits import Splits
from ..planning import Topology
from .apply_plan import GraphChoices


@dataclass
class Context:
    """What the passes of one graph share.

    Attributes:
        ranks: how many devices.
        topology: what collectives and arithmetic cost.
        choices: choices made before, by the fingerprints of the graphs that they are for.
        splits: the splits that are considered.
        fingerprint: that of the graph, as inference leaves it.
        solution: what the chooser proved.
    """

    ranks: int
    topology: Topology = field(default_factory=Topology)
    choices: Mapping[str, GraphChoices] = field(default_factory=dict)
    splits: Splits | None = None
    fingerprint: str = ""
    solution: Solution | None = None

    @property
    def considered(self) -> Splits:
        """The splits that are considered, which `list_splits` has found."""
        assert self.splits is not None, "list_splits comes first"
        return self.splits
