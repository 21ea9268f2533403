"""What a call of a compiled model takes: measured on every rank, by module, beside what was estimated.

print(tpfx.profile(model, ids))                 # one call
with tpfx.profile(model) as profile:            # or whatever is done with the model
    model.generate(ids)
profile.export_chrome_trace("trace.json")       # for chrome://tracing or https://ui.perfetto.dev

The executors themselves note when each op starts: 30 ns an op in C++, 400 ns in Python, on an AMD EPYC, where
torch.profiler takes 750 ns, and sees the caller's thread alone if it is not told otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType

from ..console.files import write
from ..errors import InputError, ModelError
from ..execution.stopwatch import Log, Stopwatch
from ..frontend.compiled_forward import Entry
from ..frontend.plain_copy import stand_ins
from ..frontend.session import session_of
from ..plan.tables import html, rendered
from ..planning import Topology
from ..runtime.mesh import Mesh
from ..runtime.processes import from_each
from .profile_tables import parts
from .profile_times import LayerTimes, RankTimes, layers_of, ranks_of
from .timeline import GraphRuns, graph_runs
from .trace import chrome_trace, timeline

SCHEMA = 1  # of `Profile.to_dict`


@dataclass(eq=False)
class Profile:
    """What the ranks of a model did, and for how long. `str(profile)` is tables, also in a notebook.

    `with tpfx.profile(model) as profile:` measures what happens in the block; before its end all is empty.

    Attributes:
        model: the class of what was measured.
        seconds: from begin to end; of several processes, of that which took longest.
        compiling: seconds of these in which graphs were captured, planned and compiled.
        runs: how often a graph ran on the ranks.
        ranks: what each rank did.
        layers: what each module took, in the order in which they first ran.
        complete: whether the ranks of all processes are in it; without the others' a rank's waiting counts
            among its collectives.
        estimated_outside: seconds that were estimated of bringing results to the caller.
        topology: what was estimated with.
        result: what the model returned, of `tpfx.profile(model, *inputs)`.
    """

    model: str = ""
    seconds: float = 0.0
    compiling: float = 0.0
    runs: int = 0
    ranks: list[RankTimes] = field(default_factory=list)
    layers: list[LayerTimes] = field(default_factory=list)
    complete: bool = True
    estimated_outside: float = 0.0
    topology: Topology = field(default_factory=Topology)
    result: Any = field(default=None, repr=False)
    _graphs: list[GraphRuns] = field(default_factory=list, repr=False)
    _watch: Stopwatch | None = field(default=None, repr=False)

    def __enter__(self) -> Profile:
        if self._watch is None or self._watch.start:
            raise InputError("this profile has been measured already: tpfx.profile(model) begins another")
        self._watch.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        assert self._watch is not None
        self._watch.__exit__(kind, *rest)
        self._take(self._watch, self._watch.logs, together=kind is None)

    @staticmethod
    def of_all(watch: Stopwatch, together: bool) -> list[Profile]:
        """A profile for each model, or set of devices, of which graphs ran.

        Args:
            watch: what has measured.
            together: whether other processes of a group have come here too, so that theirs can be had.
        """
        logs: dict[Mesh, list[Log]] = {}
        for log in watch.logs:
            logs.setdefault(log.ranks.runtime.mesh, []).append(log)
        made = [Profile(_watch=watch) for _ in logs]
        for profile, own in zip(made, logs.values(), strict=True):
            profile._take(watch, own, together)
        return made

    def _take(self, watch: Stopwatch, logs: Sequence[Log], together: bool) -> None:
        """What was measured of one model's graphs."""
        graphs, took = list(map(graph_runs, logs)), watch.seconds
        for log in logs[:1]:
            mesh = log.ranks.runtime.mesh
            self.topology = log.ranks.planned.topology if log.ranks.planned else self.topology
            self.complete = together or mesh.group is None
            if mesh.group is not None and together:
                each = from_each(mesh, (mesh.owned[0], graphs, took), "bringing together what was measured")
                others = [found for rank, found, _ in each if rank != mesh.owned[0]]
                graphs = [one.joined(rest) for one, *rest in zip(graphs, *others, strict=False)]
                took = max(seconds for *_, seconds in each)
        self._graphs, self.seconds, self.compiling = graphs, took, watch.compiling
        self.runs = sum(one.count for one in graphs)
        self.layers = layers_of(graphs)
        self.ranks = ranks_of(graphs, self.layers, took)
        self.estimated_outside = sum(one.gathered * one.count for one in graphs)

    def to_dict(self) -> dict[str, Any]:
        """The same as numbers, strings, lists and dicts, for `json`.

        Returns:
            What the attributes say, under their names, and:

            schema: 1; another number once a name means something else.
            timeline: of each graph one run, that of median length: "phase", "runs" (how many there were),
                "seconds", and for each of "ranks" its "rank" and "spans", in order, each with "name" (of the
                node, as in `tpfx dump`), "op", "module", "kind" ("compute", "waiting", or that of a
                collective), "start" (seconds since the run began) and "seconds".
        """
        return {
            "schema": SCHEMA,
            "model": self.model,
            "seconds": self.seconds,
            "compiling": self.compiling,
            "runs": self.runs,
            "complete": self.complete,
            "ranks": list(map(asdict, self.ranks)),
            "layers": list(map(asdict, self.layers)),
            "estimated_outside": self.estimated_outside,
            "topology": asdict(self.topology),
            "timeline": list(map(timeline, self._graphs)),
        }

    def save(self, path: str | Path) -> None:
        """Write `to_dict()` as JSON.

        Raises:
            FileError: the file cannot be written.
        """
        save_all([self], path)

    def export_chrome_trace(self, path: str | Path) -> None:
        """Write all runs for chrome://tracing or https://ui.perfetto.dev, with a row for each rank.

        Raises:
            FileError: the file cannot be written.
        """
        trace_all([self], path)

    def as_text(self, width: int | None = None) -> str:
        """The tables in so many columns; None for the same everywhere, as `str` has it."""
        return rendered(*self._parts(), width=width)

    def __str__(self) -> str:
        return self.as_text()

    def _repr_html_(self) -> str:
        return html(*self._parts())

    def _parts(self) -> list[RenderableType]:
        return parts(self) if self.ranks else ["nothing was measured: no graph of the model has run"]


def trace_all(profiles: Sequence[Profile], path: str | Path) -> None:
    """Write the runs of several models that were measured at once as one Chrome trace."""
    graphs = {f"model {at}" if at else "tpfx": one._graphs for at, one in enumerate(profiles)}
    start = max((one._watch.start for one in profiles if one._watch), default=0)
    write(path, json.dumps(chrome_trace(graphs, start)) + "\n")


def save_all(profiles: Sequence[Profile], path: str | Path) -> None:
    """Write the numbers of several models as JSON; of one alone as its `save` does, else as a list."""
    found = [one.to_dict() for one in profiles]
    write(path, json.dumps(found[0] if len(found) == 1 else found, indent=1) + "\n")


def profile(model: torch.nn.Module, *inputs: Any, **kwargs: Any) -> Profile:
    """Measure what a call of a compiled model takes, on every rank and by module, beside what was estimated.

    Args:
        model: what `tpfx.compile` returned, or has such a part, or what
            `torch.compile(model, backend="tpfx")` returned, once it has been called.
        inputs: of the call, as `kwargs` are. A call that compiles anything is made a second time, and that
            one is measured. Without any nothing is called: what the block of `with` does is measured.

    Returns:
        The profile. Afterwards the model is as before, and as fast. Of processes, as torchrun starts them,
        every one calls this and has the times of all.

    Raises:
        ModelError: the model is not compiled.
        InputError: its parts are compiled for several meshes.
        Exception: what the model's forward raises.

    >>> with tpfx.profile(model) as profile:
    ...     model(x).sum().backward()
    """
    made = _unmeasured(model)
    if not inputs and not kwargs:
        return made
    with made:
        made.result = model(*inputs, **kwargs)
    if made.compiling:
        made = _unmeasured(model)
        with made:
            made.result = model(*inputs, **kwargs)
    return made


def _unmeasured(model: torch.nn.Module) -> Profile:
    name = type(model).__name__
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"tpfx.profile takes an nn.Module, got {name}")
    meshes = set(_meshes(model))
    if not meshes:
        raise ModelError("this model is not compiled; call tpfx.compile(model, devices) first")
    if len(meshes) > 1:
        raise InputError(
            f"{len(meshes)} parts of this {name} are compiled by themselves; profile one of them, "
            "tpfx.profile(model.part, …)"
        )
    return Profile(type(getattr(model, "_orig_mod", model)).__name__, _watch=Stopwatch(meshes))


def _meshes(model: torch.nn.Module) -> Iterator[Mesh]:
    """The devices of what is compiled of a model; of `torch.compile`, those of the session of its weights."""
    parts = (one for module in model.modules() for _, one in stand_ins(module))
    own = [one.session.mesh for one in parts if isinstance(one, Entry)]
    session = None if own else session_of(model)
    yield from own if session is None else [session.mesh]
