"""What sweeps share: a job after the other in a few processes, each within its time."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

J = TypeVar("J", bound=Hashable)
O = TypeVar("O")  # noqa: E741


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the main thread where something takes longer."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def sweep(check: Callable[[J], O], jobs: Sequence[J], workers: int, tell: Callable[[O], None]) -> list[O]:
    """The outcomes of all jobs, in their order; `tell` hears of each when it is there."""
    outcomes: dict[J, O] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_quiet) as pool:
        futures = {pool.submit(check, job): job for job in jobs}
        for future in as_completed(futures):
            outcomes[futures[future]] = outcome = future.result()
            tell(outcome)
    return [outcomes[job] for job in jobs]


def sweep_in_view(
    check: Callable[[J], O], jobs: Sequence[J], workers: int, line: Callable[[O], str], console: Console
) -> list[O]:
    """The same, with a line for each outcome above a bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("splitting", total=len(jobs))

        def tell(outcome: O) -> None:
            progress.console.print(line(outcome))
            progress.advance(bar)

        return sweep(check, jobs, workers, tell)


def _quiet() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
