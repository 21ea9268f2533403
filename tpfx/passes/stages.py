"""Show a graph after a stage of the compiler: to whoever asks, or on standard error.

TPFX_DUMP=choose,insert python generate.py      # prints the graphs after these stages, as they are compiled
with observing(note): parallelize(graph, …)     # note("normalize", graph), note("simplify", graph), …
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch.fx import Graph

from ..dump.text import stage_text
from ..errors import InputError

VARIABLE = "TPFX_DUMP"
CAPTURED = "captured"  # the stage before the first pass
LOCALIZE = "localize"  # the stage after the last one: one graph for each rank

Observer = Callable[[str, Graph], None]
_OBSERVER: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Call a function with the name of each stage and the graph after it, for as long as this lasts.

    The next stage changes the graph in place: an observer keeps text, or a copy.
    """
    before = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(before)


def show_stage(name: str, graph: Graph, known: Sequence[str]) -> None:
    """Show a graph to the observer, and on standard error where the environment asks for it.

    Raises:
        InputError: the environment asks for a stage that is not known.
    """
    observer = _OBSERVER.get()
    if observer is not None:
        observer(name, graph)
    if name in _asked(known):
        print(f"# after {name}\n{text_of(name, graph)}\n", file=sys.stderr, flush=True)


def text_of(name: str, graph: Graph, *, unfold: bool = False) -> str:
    """A graph after a stage as text: what no pass has changed, and what a rank runs, as PyTorch writes it."""
    match name:
        case "captured":
            return str(graph).strip()
        case "localize":
            return str(graph.python_code("self").src).strip()
        case _:
            return stage_text(graph, unfold=unfold)


def check_stage(name: str, known: Sequence[str], what: str) -> None:
    """Refuse a stage that is not known.

    Raises:
        InputError: it is none of the known ones; `what` says where it was asked for.
    """
    if name not in known:
        raise InputError(f"{what}: there is no stage {name!r}; there are {', '.join(known)}")


def _asked(known: Sequence[str]) -> list[str]:
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    if names == ["all"]:
        return list(known)
    for name in names:
        check_stage(name, known, f"{VARIABLE}={os.environ[VARIABLE]}")
    return names
