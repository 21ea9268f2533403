"""What was done to a model, as numbers and as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from rich.table import Table

from ..dump.text import dump_text
from ..formatting import bytes_text, counted
from ..ir.parallel_graph import Collective, ParallelGraph
from ..plan.estimate import asked
from ..plan.tables import html, phase_text, rendered
from ..sharded_tensor import ShardedTensor
from ..torch_internals.batch_guards import CAN_OPEN_BATCHES
from ..torch_internals.parameter_slots import slots_of
from .undivided import Undivided, undivided_in

if TYPE_CHECKING:
    from .session import Session


@dataclass(frozen=True)
class Report:
    """What tpfx did to a model, or will. `str(report)` is tables, also in a notebook.

    Attributes:
        devices: the device of each rank.
        bytes_per_device: bytes of parameters and buffers on each device, a list in the order of the ranks.
        total_bytes: bytes of the unsharded parameters and buffers, tied weights once.
        collectives: the collectives of the newest graph.
        graphs: how many graphs have been compiled so far.
        whole_ops: ops that run whole for want of a rule, and how often they occur.
        optimal: whether the newest graph's plan is proven to be the cheapest.
        cost: the seconds that the chooser predicts for it, a price on resident bytes included.
        parallel: the newest graph, as planned.
        whole_calls: calls of the model that ran whole, since Dynamo had no graph for them.
        planned: whether the newest graph was carried out as a given plan says; None where none was given.
        followed: of each graph of that plan, in order, the phase, and how many graphs were carried out as it
            says.
        device_compiler: what runs the graph of each device, "native", "eager" or "inductor".
        in_python: what graphs that run natively call in Python, whose lock ranks share, and how often.
        batch_by_batch: why steps of one token have graphs for some batches each; None where one does for all.
        recordings: how many runs have been recorded, to be replayed (`mode="reduce-overhead"`).
        not_recorded: why graphs are not recorded, and how many.
        undivided: weights that no graph has divided, by reason, with what can be done about it.
    """

    devices: list[str]
    bytes_per_device: list[int]
    total_bytes: int
    collectives: list[Collective]
    graphs: int
    whole_ops: dict[str, int]
    optimal: bool
    cost: float
    parallel: ParallelGraph | None = field(default=None, repr=False)
    whole_calls: int = 0
    planned: bool | None = None
    followed: list[tuple[str, int]] = field(default_factory=list)
    device_compiler: str = "native"
    batch_by_batch: str | None = None
    in_python: dict[str, int] = field(default_factory=dict)
    recordings: int = 0
    not_recorded: dict[str, int] = field(default_factory=dict)
    undivided: list[Undivided] = field(default_factory=list)

    @staticmethod
    def of(model: torch.nn.Module, session: Session) -> Report:
        """Take stock of a model."""
        held = {id(slot.value): slot.value for slot in slots_of(model)}
        resident = [0] * session.mesh.size
        for value in held.values():
            for rank, size in enumerate(_resident(value)):
                resident[rank] += size
        newest = session.newest
        return Report(
            devices=[str(device) for device in session.mesh.devices],
            bytes_per_device=resident,
            total_bytes=sum(value.numel() * value.element_size() for value in held.values()),
            collectives=newest.collectives() if newest else [],
            graphs=session.graphs,
            whole_ops=dict(session.whole_ops),
            optimal=newest.solution.optimal if newest else False,
            cost=newest.solution.cost if newest else 0.0,
            parallel=newest,
            whole_calls=session.whole_calls,
            planned=newest.recalled if newest and session.plan else None,
            followed=session.followed_of_plan(),
            device_compiler=session.device_compiler,
            batch_by_batch=session.batch_by_batch,
            in_python=dict(session.in_python),
            recordings=session.recordings,
            not_recorded=dict(session.not_recorded),
            undivided=undivided_in(model),
        )

    def dump(self) -> str:
        """The newest parallel graph as text."""
        return dump_text(self.parallel) if self.parallel else ""

    def __str__(self) -> str:
        return rendered(*self._parts(), width=100)

    def _repr_html_(self) -> str:
        return html(*self._parts())

    def _parts(self) -> list[Table | str]:
        """Tables and sentences: before the first call, what is known, and what will be."""
        parts: list[Table | str] = [self._bytes_table()]
        if not self.graphs:
            parts.append(self._before_the_first_call())
        if self.parallel is None and not self.whole_calls:
            return parts
        parts.append(self._collectives_table())
        return [*parts, self._undivided_table()] if self.undivided else parts

    def _before_the_first_call(self) -> str:
        if self.whole_calls:
            return f"no graph has been captured: {counted(self.whole_calls, 'call')} ran whole"
        devices = counted(len(self.devices), "device")
        if self.parallel is None:
            each = bytes_text(self.total_bytes // len(self.devices))
            return (
                f"no call yet: the first captures the model, decides how it is divided over {devices}, about "
                f"{each} of weights on each, and compiles a graph for each; with example_inputs "
                "tpfx.compile decides at once"
            )
        return (
            f"no call yet: how the model is divided over {devices} is decided, by what an example needs; the "
            "first call compiles a graph for each"
        )

    def _bytes_table(self) -> Table:
        table = Table(title=f"weights on {counted(len(self.devices), 'device')}", title_justify="left")
        for heading in ("rank", "device", "bytes", "of the whole"):
            table.add_column(heading, justify="left" if heading == "device" else "right")
        for rank, (device, size) in enumerate(zip(self.devices, self.bytes_per_device, strict=True)):
            table.add_row(str(rank), device, bytes_text(size), f"{size / max(1, self.total_bytes):.1%}")
        table.add_section()
        table.add_row("", "unsharded", bytes_text(self.total_bytes), "100.0%")
        return table

    def _collectives_table(self) -> Table:
        plan = "proven cheapest" if self.optimal else "not proven cheapest"
        plan += {True: ", from the plan", False: ", not in the plan", None: ""}[self.planned]
        plan += "" if self.device_compiler == "native" else f", run by {self.device_compiler}"
        of = f"the newest of {counted(self.graphs, 'graph')}" if self.graphs else "what is planned"
        title = f"collectives of {of} ({plan})"
        table = Table(title=title, title_justify="left", min_width=len(title) + 2)
        for heading in ("kind", "count", "bytes"):
            table.add_column(heading, justify="left" if heading == "kind" else "right")
        counts = Counter(collective.kind for collective in self.collectives)
        for kind, count in counts.items():
            size = sum(collective.bytes for collective in self.collectives if collective.kind == kind)
            table.add_row(kind, str(count), bytes_text(size))
        for phase, count in self.followed:
            called = phase_text(phase, [each for each, _ in self.followed])
            table.add_row(f"graphs carried out as the plan's {called}", str(count), "")
        for op, count in self.whole_ops.items():
            table.add_row(f"runs whole: {op}", str(count), "")
        for what, count in self.in_python.items():
            table.add_row(f"takes Python's lock: {what}", str(count), "")
        if self.recordings:
            table.add_row("runs recorded, to be replayed", str(self.recordings), "")
        for why, count in self.not_recorded.items():
            table.add_row(f"graphs not recorded: {why}", str(count), "")
        if self.whole_calls:
            table.add_row("calls that ran whole", str(self.whole_calls), "")
        # Where torch can leave a batch open, a step of one token was tried; elsewhere nothing was.
        steps = CAN_OPEN_BATCHES or (self.parallel is not None and asked(self.parallel)[0] == "token")
        if self.batch_by_batch and self.parallel is not None and steps:
            table.add_row(f"steps compiled batch by batch: {self.batch_by_batch}", "", "")
        return table

    def _undivided_table(self) -> Table:
        table = Table(title="weights that are not divided", title_justify="left")
        for heading in ("weights", "bytes", "why", "what helps"):
            table.add_column(heading, justify="right" if heading == "bytes" else "left")
        for one in self.undivided:
            table.add_row(one.named, bytes_text(one.bytes), one.reason, one.remedy)
        return table


def said_of(session: Session) -> str:
    """A line on a compiled model, for its `repr`."""
    devices = [str(device) for device in session.mesh.devices]
    so_far = "" if session.newest else "; its weights are divided at the first call"
    return f"split by tpfx over {counted(len(devices), 'device')}: {', '.join(devices)}{so_far}"


def _resident(weight: torch.Tensor) -> Sequence[int]:
    """Bytes on each rank; a plain tensor, put in a weight's place after compiling, is on the first."""
    return weight.resident_bytes if isinstance(weight, ShardedTensor) else (weight.nbytes,)
