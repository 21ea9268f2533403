"""What other processes take of the machine while something is measured.

Ranks wait for each other at every all-reduce, so one busy core holds up all of them, where a single thread
moves to another core: on a busy machine, taking turns is not enough to compare the two.
"""

from __future__ import annotations

import time

import psutil  # type: ignore[import-untyped]

LOUD = 0.15  # cores; below, the machine counts as quiet


class Others:
    """Watches the processes that are not ours; waits for them for `patience` seconds in all."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._process = psutil.Process()
        self._last = self._look()

    def cores(self) -> float:
        """How many cores they have used on average since the last call."""
        (since, before), self._last = self._last, self._look()
        now, after = self._last
        return max(0.0, (after - before) / max(now - since, 1e-9))

    def wait(self) -> None:
        """Return when they are quiet, or when there is no patience left."""
        while self.patience > 0:
            self.cores()
            time.sleep(0.5)
            if self.cores() < LOUD:
                return
            self.patience -= 0.5

    def _look(self) -> tuple[float, float]:
        """The time, and the CPU seconds that all others have used by then."""
        ours = 0.0
        for process in (self._process, *self._process.children(recursive=True)):
            times = process.cpu_times()
            ours += times.user + times.system
        spent = psutil.cpu_times()
        resting = spent.idle + getattr(spent, "iowait", 0.0)
        guests = getattr(spent, "guest", 0.0) + getattr(spent, "guest_nice", 0.0)  # counted as user time too
        return time.monotonic(), sum(spent) - resting - guests - ours
