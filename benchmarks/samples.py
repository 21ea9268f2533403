"""From seconds to ratios: several systems measured in turns, each round one sample of every system.

Whatever else the machine does hits the systems of one round alike, so speedups are taken within a round.

>>> Spread.of([1.6, 1.8, 1.5])
Spread(median=1.6, low=1.5, high=1.8)
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

# system → phase → seconds, one for each round
Samples = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, and the least and greatest of them."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Of at least one number."""
        return Spread(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def speedups(samples: Samples, baseline: str) -> dict[str, dict[str, Spread]]:
    """How many times faster than `baseline` each system is in each phase, round by round."""
    return {
        system: {
            phase: Spread.of(
                [base / mine for base, mine in zip(samples[baseline][phase], seconds, strict=True)]
            )
            for phase, seconds in phases.items()
        }
        for system, phases in samples.items()
    }


def ratios_of(samples: Samples, baseline: str) -> dict[str, dict[str, dict[str, float]]]:
    """`speedups` as plain numbers, for a file."""
    return {
        system: {phase: asdict(spread) for phase, spread in phases.items()}
        for system, phases in speedups(samples, baseline).items()
    }


def speedup_table(title: str, samples: Samples, baseline: str) -> Table:
    """A row for each system, a column for each phase: milliseconds (median) and speedup over `baseline`."""
    caption = f"ms: median; ×: times faster than '{baseline}', median (least–most)"
    table = Table(title=title, caption=caption)
    table.add_column("system")
    for phase in samples[baseline]:
        table.add_column(phase, justify="right", no_wrap=True)
    for system, spreads in speedups(samples, baseline).items():
        cells = [
            f"{statistics.median(samples[system][phase]) * 1e3:.1f} ms\n× {spread}"
            for phase, spread in spreads.items()
        ]
        table.add_row(system, *cells)
    return table


def over_linear(seconds: Mapping[int, float]) -> dict[int, float]:
    """How much more than in proportion to its size each took; the smallest is 1.

    >>> over_linear({8: 1.0, 16: 2.2})
    {8: 1.0, 16: 1.1}
    """
    least = min(seconds)
    return {size: value / seconds[least] / (size / least) for size, value in seconds.items()}


def stage_table(title: str, stages: Mapping[int, Mapping[str, float]]) -> Table:
    """Seconds of each stage, a column for each depth, and how the totals compare with linear growth."""
    table = Table(title=title, caption="seconds of CPU; ÷ linear: 1 is in proportion to the depth")
    table.add_column("stage")
    for depth in stages:
        table.add_column(f"{depth} layers", justify="right")
    table.add_column("÷ linear", justify="right")
    for name in next(iter(stages.values())):
        _add_row(table, name, {depth: times[name] for depth, times in stages.items()})
    table.add_section()
    _add_row(table, "all", {depth: sum(times.values()) for depth, times in stages.items()})
    return table


def _add_row(table: Table, name: str, seconds: Mapping[int, float]) -> None:
    ratio = over_linear(seconds)[max(seconds)] if all(seconds.values()) else float("nan")
    table.add_row(name, *(f"{value:.3f}" for value in seconds.values()), f"{ratio:.2f}")
