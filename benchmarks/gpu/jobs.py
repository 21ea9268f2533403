"""Cases in processes of their own, several at once: one that hangs, or dies, is ended, and the rest go on."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from ..remote import ROOT

Found = dict[str, Any]
STARTING = 60.0  # seconds that a process may take beside its first case


@dataclass(frozen=True)
class Plan:
    """How processes are run.

    Attributes:
        command: starts one, which answers lines with lines of JSON; see `child`.
        jobs: how many work at once.
        end: when all is to be over, in seconds of the monotonic clock.
        errors: where they write what they have to say.
    """

    command: Sequence[str]
    jobs: int
    end: float
    errors: IO[str]

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


class Child:
    """A process that runs one case at a time."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self._patience = plan, STARTING
        self.process = subprocess.Popen(
            plan.command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=plan.errors,
            text=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print too
                self._lines.put(line)
        self._lines.put(None)

    def ask(self, name: str, seconds: float, line: str | None = None) -> Found:
        """What a case found, or that it is ready; the process is ended where it takes too long.

        Args:
            name: of the case.
            seconds: that it may take.
            line: what is written to the process, if not the name.
        """
        assert self.process.stdin is not None
        self.process.stdin.write((line or name) + "\n")
        self.process.stdin.flush()
        allowed, self._patience = min(seconds + self._patience, self.plan.left), 0.0
        try:
            answer = self._lines.get(timeout=max(0.1, allowed))
        except queue.Empty:
            self.close()
            why = "out of time" if self.plan.left <= 0 else "took too long"
            return {"case": name, "ok": False, "error": why}
        if answer is None:
            self.close()
            return {"case": name, "ok": False, "error": f"the process ended ({self.process.returncode})"}
        found: Found = json.loads(answer)
        return found

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


Cases = Sequence[tuple[str, float]]  # names, and the seconds that each may take
Tell = Callable[[Found], None]  # is called with what each found, one at a time


def run_all(plan: Plan, cases: Cases, tell: Tell) -> None:
    """Run cases until the time is over; the rest is not run."""
    started: list[Child] = []  # by each thread, which goes on with one while it lives

    def one(own: threading.local, name: str, seconds: float) -> Found:
        current: Child | None = getattr(own, "child", None)
        if current is None or current.process.poll() is not None:
            own.child = current = Child(plan)
            started.append(current)
        return current.ask(name, seconds)

    _in_threads(plan, cases, one, tell)
    for child in started:
        child.close()


def time_all(plan: Plan, cases: Cases, tell: Tell, reserve: float) -> None:
    """Prepare cases, each in a process, and have them timed one by one, in the seconds kept for it."""
    ready: dict[str, Child] = {}
    preparing = Plan(plan.command, plan.jobs, plan.end - reserve, plan.errors)

    def one(own: threading.local, name: str, seconds: float) -> Found:
        child = Child(preparing)
        found = child.ask(name, seconds)
        if "ready" in found:
            ready[name] = child
        else:
            child.close()
        return found

    _in_threads(preparing, cases, one, lambda found: None if "ready" in found else tell(found))
    for name, seconds in cases:
        if name in ready:
            ready[name].plan = plan
            tell(ready[name].ask(name, seconds, "go"))
            ready[name].close()


def _in_threads(
    plan: Plan, cases: Cases, one: Callable[[threading.local, str, float], Found], tell: Tell
) -> None:
    """Take cases one after the other, in several threads."""
    left, lock, own = list(cases), threading.Lock(), threading.local()

    def work() -> None:
        while True:
            with lock:
                if not left or plan.left < 5:
                    return
                name, seconds = left.pop(0)
            found = one(own, name, seconds)
            with lock:
                tell(found)

    workers = [threading.Thread(target=work) for _ in range(min(plan.jobs, len(left)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
