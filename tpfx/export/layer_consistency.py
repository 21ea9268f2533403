"""Which regions work on shards: those that a rehearsal confirms, and that are alike in all layers of a name.

    agreed = Agreement(model, plans, to)
    agreed.decide(inputs)
    agreed.style("layers.*.mlp.up_proj")      "column", "column alone" where its output is gathered, or None

Names of modules stand for all layers, as `*` does in the plans of other tools: layers that are not split
alike do not work on shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..capture.inputs import Inputs
from ..ir.parallel_graph import ParallelGraph
from .sharded_modules import Owners, SplitModule
from .sharded_regions import Region, survey
from .styles import pattern_of
from .trial_capture import rehearse


class Agreement:
    """How each module of a model is split.

    Attributes:
        owners: the modules and their weights.
        alike: for each name with `*`, the modules that it stands for.
        regions: what the splits of the plans run through; those that do not work on shards are refused.
    """

    def __init__(self, model: torch.nn.Module, plans: Sequence[ParallelGraph], to: str) -> None:
        self.model, self.plans = model, plans
        self.owners = Owners.of(model)
        self.alike: dict[str, list[str]] = {}
        for name in self.owners.modules:
            self.alike.setdefault(pattern_of(name), []).append(name)
        self.regions: list[Region] = []
        self._left: dict[str, str] = {}
        for parallel in plans:
            regions, left = survey(self.owners, parallel)
            self.regions += regions
            self._left |= left
        split = {name: member for region in self.regions for name, member in region.members.items()}
        self._leave_tied(split)
        self._members = {name: member for name, member in split.items() if name not in self._left}
        for region in self.regions:
            if to == "parallelize-module" and not region.refused and _is_uneven(region):
                region.refused = "parallelize_module takes shards to be of one size, and they are not"

    def _leave_tied(self, split: Mapping[str, SplitModule]) -> None:
        """Leave out what shares a weight with a module that is left out."""
        tied = [[path for path, _ in holders] for holders in self.owners.holders.values() if len(holders) > 1]
        for _ in tied:
            for paths in tied:
                left = next((path for path in paths if path in self._left), None)
                if left is not None:
                    reason = f"tied to {left}: {self._left[left]}"
                    self._left = dict.fromkeys(split.keys() & set(paths), reason) | self._left

    def working(self) -> list[Region]:
        """The regions in which shards are passed on, as far as is known."""
        return [region for region in self.regions if region.open and not region.refused]

    def decide(self, inputs: Inputs | None) -> None:
        """Refuse the regions that cannot work on shards; all are rehearsed at once, or else name by name."""
        self._agree()
        reason = self._rehearse(self.working(), inputs)
        if not reason:
            return
        groups: dict[frozenset[str], list[Region]] = {}
        for region in self.working():
            groups.setdefault(frozenset(map(pattern_of, region.open)), []).append(region)
        for group in groups.values():
            _refuse(group, reason if len(groups) == 1 else self._rehearse(group, inputs))
        self._agree()
        if sum(any(not region.refused for region in group) for group in groups.values()) > 1:
            _refuse(self.working(), self._rehearse(self.working(), inputs))
            self._agree()

    def _rehearse(self, regions: Sequence[Region], inputs: Inputs | None) -> str:
        return rehearse(self.model, self.plans, regions, inputs) if regions else ""

    def _agree(self) -> None:
        """Refuse regions of which a module is whole elsewhere, or is split otherwise in another layer."""
        before = -1
        while before != len(self.working()):
            before = len(self.working())
            closed = {
                name
                for region in self.regions
                for name in region.members
                if region.refused or name not in region.open
            }
            for region in self.working():
                if left := sorted(region.open & self._left.keys()):
                    region.refused = f"split with {left[0]}: {self._left[left[0]]}"
                elif not closed.isdisjoint(region.open):
                    region.refused = "one of its modules is whole in and out elsewhere"
                elif any(len(self._styles(pattern_of(name))) > 1 for name in region.open | region.summed):
                    region.refused = _UNLIKE

    # What came of it.

    def style(self, pattern: str) -> str | None:
        """The style of all modules of a name: whatever is whole in and out may be so in every layer."""
        styles = self._styles(pattern)
        if len(styles) == 1:
            return next(iter(styles))
        kinds = {type(self.owners.modules[name]) for name in self.alike[pattern]}
        alone = sorted(style for style in styles if style is not None and style.endswith(" alone"))
        left = any(name in self._left for name in self.alike[pattern])
        return alone[0] if len(kinds) == 1 and alone and not left else None

    def reason(self, pattern: str) -> str:
        """Why a module of this name is not split as planned; empty where all are."""
        reasons = (self._reason(name, self.style(pattern)) for name in self.alike[pattern])
        return next(filter(None, reasons), "")

    def _styles(self, pattern: str) -> set[str | None]:
        return {self._style(name) for name in self.alike[pattern]}

    def _style(self, name: str) -> str | None:
        """How one module is split; None where it is not."""
        if name in self._members:
            opened = any(name in region.open for region in self.working())
            return self._members[name].way + ("" if opened else " alone")
        return "summed" if any(name in region.summed for region in self.working()) else None

    def _reason(self, name: str, style: str | None) -> str:
        if name in self._left:
            return self._left[name]
        planned = [region for region in self.regions if name in region.open]
        refused = next((region.refused for region in planned if region.refused), "")
        return refused or (_UNLIKE if style is None and name in self._members else "")


_UNLIKE = "it is not split alike in all layers"


def _refuse(regions: Sequence[Region], reason: str) -> None:
    for region in regions:
        region.refused = region.refused or reason


def _is_uneven(region: Region) -> bool:
    boxes = [[stop - start for start, stop in box.values()] for box in region.division.rank_intervals]
    return any(box != boxes[0] for box in boxes)
