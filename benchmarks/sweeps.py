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


def _quiet() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
