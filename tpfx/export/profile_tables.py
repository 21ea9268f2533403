"""A profile as tables: what each rank did, what each module took, and what differs most from the estimate."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich.console import RenderableType
from rich.table import Table

from ..dump.repeated_layers import Layer, runs, span
from ..formatting import counted, seconds_text
from ..ir.provenance import layer_of, stem_of
from ..planning import Topology
from .profile_times import LayerTimes, RankTimes

if TYPE_CHECKING:
    from .profile import Profile

KINDS = ("compute", "collectives", "waiting")
ALIKE = 1.1  # times as long as another: no longer alike


class Row(NamedTuple):
    """What a module, or all that are alike, took on the average rank, in seconds."""

    module: str
    phase: str
    compute: float
    collectives: float
    waiting: float
    estimated: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compute + self.collectives + self.waiting


class Total(NamedTuple):
    """Seconds in graphs of the average rank, and estimated ones; never 0."""

    seconds: float
    estimated: float

    @staticmethod
    def of(rows: Sequence[Row]) -> Total:
        """Of all modules."""
        return Total(sum(row.seconds for row in rows) or 1.0, sum(row.estimated for row in rows) or 1.0)


def parts(profile: Profile) -> list[RenderableType]:
    """Tables, and sentences."""
    rows = list(_rows(profile.layers))
    return [_ranks_table(profile), _layers_table(profile, rows), *_remarks(profile, rows)]


def _ranks_table(profile: Profile) -> Table:
    title = (
        f"{profile.model or 'a model'} on {counted(len(profile.ranks), 'device')}: "
        f"{seconds_text(profile.seconds)}, {counted(profile.runs, 'run')} of its graphs"
    )
    table = Table(title=title, title_justify="left", min_width=len(title) + 2)
    for heading in ("rank", "device", *KINDS, "outside"):
        table.add_column(heading, justify="left" if heading == "device" else "right")
    for one in profile.ranks:
        taken = (one.compute, one.collectives, one.waiting, one.outside)
        table.add_row(str(one.rank), one.device, *(_part(each, profile.seconds) for each in taken))
    table.add_section()
    compute, collectives = _estimated(profile.layers)
    outside = seconds_text(profile.estimated_outside)
    table.add_row("", "estimated", seconds_text(compute), seconds_text(collectives), "–", outside)
    return table


def _part(seconds: float, whole: float) -> str:
    return f"{seconds_text(seconds)} {seconds / whole:4.0%}"


def _estimated(layers: Sequence[LayerTimes]) -> tuple[float, float]:
    """Seconds of compute and of collectives that were estimated of the average rank."""
    compute = sum(_mean(one.estimated_compute) for one in layers)
    return compute, sum(_mean(one.estimated_collectives) for one in layers)


def _mean(seconds: Sequence[float]) -> float:
    return sum(seconds) / len(seconds)


def _layers_table(profile: Profile, rows: Sequence[Row]) -> Table:
    title = "by module" + (", the mean of the ranks" if len(profile.ranks) > 1 else "")
    table = Table(title=title, title_justify="left")
    for heading in ("module", *KINDS, "of all", "estimated", "of all"):
        table.add_column(heading, justify="left" if heading == "module" else "right")
    total, before = Total.of(rows), None
    for row in rows:
        if row.phase != before:
            table.add_section()
        before = row.phase
        table.add_row(
            _called(row),
            *(seconds_text(each) if each else "–" for each in (row.compute, row.collectives, row.waiting)),
            f"{row.seconds / total.seconds:.1%}",
            seconds_text(row.estimated) if row.estimated else "–",
            f"{row.estimated / total.estimated:.1%}" if row.estimated else "–",
        )
    return table


def _called(row: Row) -> str:
    name = row.module or "the model itself"
    return name if row.phase == "forward" else f"{name}, {row.phase}"


def _rows(layers: Sequence[LayerTimes]) -> Iterator[Row]:
    """A row for each module; one for all layers that follow one another and have the same modules."""
    for phase in dict.fromkeys(one.phase for one in layers):
        inside: dict[str, dict[str, LayerTimes]] = {}
        for one in layers:
            layer = layer_of(one.module) or one.module
            if one.phase == phase:
                inside.setdefault(layer, {})[one.module[len(layer) :]] = one
        ordered = _in_order(list(inside))
        for run in runs([Layer(*stem_of(layer), _likeness(inside[layer])) for layer in ordered]):
            first, last = ordered[run[0]], ordered[run[-1]]
            called = first if len(run) == 1 else span(first, last)
            for rest in inside[first]:
                yield _row(called + rest, phase, [inside[ordered[at]][rest] for at in run])


def _likeness(modules: Mapping[str, LayerTimes]) -> Hashable:
    """What layers have alike that are written as one."""
    return frozenset((name, frozenset(one.ops)) for name, one in modules.items())


def _in_order(layers: Sequence[str]) -> list[str]:
    """Layers by their numbers, at the place of the first of them; what belongs to no module comes last."""
    places: dict[str, int] = {}
    for at, layer in enumerate(layers):
        places.setdefault(stem_of(layer)[0], at)

    def place(layer: str) -> tuple[bool, int, int]:
        stem, number = stem_of(layer)
        return not layer, places[stem], number or 0

    return sorted(layers, key=place)


def _row(called: str, phase: str, layers: Sequence[LayerTimes]) -> Row:
    compute, collectives, waiting = (
        sum(_mean(times) for times in column)
        for column in zip(*((one.compute, one.collectives, one.waiting) for one in layers), strict=True)
    )
    return Row(called, phase, compute, collectives, waiting, sum(_estimated(layers)))


# Sentences.


def _remarks(profile: Profile, rows: Sequence[Row]) -> Iterator[str]:
    if any(one.device.startswith("cuda") for one in profile.ranks):
        yield (
            "each op on a GPU was waited for, so that its time is known, and no run was replayed from a "
            "recording: without a profile this is faster"
        )
    if not profile.complete:
        yield (
            "the times of other processes are not here, so that waiting for them counts as collectives: they "
            "are had where none has failed, or left the process group, before the end"
        )
    if profile.compiling:
        yield (
            f"{seconds_text(profile.compiling)} of what is outside went into capturing, planning and "
            "compiling: later calls do without"
        )
    yield f"largest difference: {largest_difference(profile, rows)}"


def largest_difference(profile: Profile, rows: Sequence[Row]) -> str:
    """What took longest beyond its estimate, and what can be done about it.

    Compiling is not counted, nor what a rank computes longer than the fastest: the others wait for that.
    """
    ranks = profile.ranks
    took = [
        min(one.compute for one in ranks),
        _mean([one.collectives for one in ranks]),
        max(one.waiting for one in ranks),
        _mean([one.outside for one in ranks]) - profile.compiling,
    ]
    estimated = [*_estimated(profile.layers), 0.0, profile.estimated_outside]
    beyond = [abs(one - other) for one, other in zip(took, estimated, strict=True)]
    which = beyond.index(max(beyond))
    if which == 2:
        return f"a rank waits for {seconds_text(took[2])}. {_of_waiting(ranks)}"
    what = f"{(*KINDS, 'outside')[which]}: {seconds_text(took[which])}, estimated "
    what += seconds_text(estimated[which])
    return f"{what}. {_OUTSIDE if which == 3 else _of_topology(profile.topology, rows)}"


_OUTSIDE = (
    "This is Python: what is around the model's graphs, and handing values over. It weighs less where a call "
    "does more; torch.profiler shows what it is"
)


def _of_topology(topology: Topology, rows: Sequence[Row]) -> str:
    total = Total.of(rows)
    row = max(rows, key=lambda one: abs(one.seconds / total.seconds - one.estimated / total.estimated))
    given = "which is what is assumed where none is given, " if topology == Topology() else ""
    return (
        f"The estimate is of devices with {topology.flops / 1e12:.4g} Tflop/s and "
        f"{topology.bandwidth / 1e9:.4g} GB/s to others, {given}and `tpfx topology measure -o here.json` "
        'measures those here, for topology=tpfx.Topology.load("here.json"). Of shares, that of '
        f"{_called(row)} differs most: {row.seconds / total.seconds:.1%} of all, estimated "
        f"{row.estimated / total.estimated:.1%}"
    )


def _of_waiting(ranks: Sequence[RankTimes]) -> str:
    last = min(ranks, key=lambda one: one.waiting)
    others = _mean([one.compute for one in ranks if one is not last])
    if last.compute < ALIKE * others:
        return (
            "All compute for about as long: now one is held up, now another, as where there are more threads "
            "than cores, or others use them"
        )
    return (
        f"The others wait for rank {last.rank} ({last.device}): it computes for "
        f"{seconds_text(last.compute)}, they do for {seconds_text(others)}. Its device is slower, others use "
        "it too, or its share is larger, as print(tpfx.report(model)) says"
    )
