"""What a model is compiled for, and what its graphs share."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch.distributed import ProcessGroup
from torch.fx import Graph

from ..console.logs import heed
from ..errors import DeviceError, TpfxError
from ..execution.cuda_graphs import Recorder, recorder_for
from ..execution.ranks import Recording
from ..ir.parallel_graph import ParallelGraph
from ..lowering.device_compiler import check_device_compiler
from ..lowering.recordable import obstacle
from ..passes.apply_plan import GraphChoices
from ..passes.context import Kept
from ..plan.kept_plans import of_user
from ..plan.plan import Plan
from ..planning import Topology
from ..runtime.mesh import Mesh
from ..runtime.process_runtime import ProcessRuntime
from ..runtime.processes import mesh_from
from ..runtime.thread_runtime import Runtime
from ..sharded_tensor.state_tensor import give_addresses
from ..torch_internals.dynamo_cache import forget_graphs, forget_sizes, sizes_now
from ..torch_internals.parameter_slots import slots_of
from ..workers.worker_runtime import WorkerRuntime
from .effects import EFFECTS, is_own

# As torch.compile's: whether runs are recorded as CUDA graphs, where they can be.
MODES = ("default", "reduce-overhead")


@dataclass(frozen=True)
class Target:
    """The devices and how they are used, as `tpfx.compile` takes them.

    Attributes:
        devices: a list, an int, a DeviceMesh, or None.
        topology: what collectives and arithmetic cost, for the chooser.
        device_compiler: one of `DEVICE_COMPILERS`.
        timeout: seconds that a rank waits for the others.
        group: the processes that have such devices each.
        mode: one of `MODES`.
        processes: whether the ranks after the first are processes that are started for it.

    Raises:
        TpfxError: the device compiler, the mode, or a log in TPFX_LOGS is unknown.
    """

    devices: Any = None
    topology: Topology | None = None
    device_compiler: str = "native"
    timeout: float = 300.0
    group: ProcessGroup | None = None
    mode: str = "default"
    processes: bool = False

    def __post_init__(self) -> None:
        heed()
        check_device_compiler(self.device_compiler)
        if self.mode not in MODES:
            raise TpfxError(f"mode={self.mode!r} is unknown; pass {' or '.join(map(repr, MODES))}")
        if self.processes and self.device_compiler == "inductor":
            raise TpfxError(
                "device_compiler='inductor' does not go with processes=True: leave out one or the other, or "
                "start one process per device with torchrun"
            )
        if isinstance(self.devices, list):  # so that it can be a key
            object.__setattr__(self, "devices", tuple(self.devices))

    def mesh(self) -> Mesh:
        """The ranks.

        Raises:
            DeviceError: the devices do not make a mesh.
        """
        return mesh_from(self.devices, self.timeout, self.group, self.processes)


# Which sessions have their ranks run by a runtime.
_USERS: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Session]] = weakref.WeakKeyDictionary()


@dataclass(eq=False)
class Session:
    """What the graphs of one compiled model share.

    While any session lives, torch is changed as `EFFECTS` says.

    Attributes:
        mesh: the devices.
        runtime: the threads, or processes, that run the ranks.
        topology: what collectives cost.
        device_compiler: what runs the graph of a rank, one of `DEVICE_COMPILERS`.
        graphs: how many graphs have been compiled.
        newest: the newest parallel graph, or that of the plan while nothing has run.
        whole_ops: ops that ran whole for want of a rule, in all graphs.
        in_python: what the native executor calls in Python, in all graphs of a rank, and how often.
        runs: how often a graph has been run.
        whole_calls: calls of the model that ran no graph, but whole, as the model's own code.
        plan: what says how graphs are carried out that it has, if anything does.
        followed: how many graphs were carried out as one of the plan says, by its fingerprint.
        kept: where choices of other graphs are kept for later processes, if anywhere.
        batch_by_batch: why steps of one token have graphs for some batches each; None where one does for all.
        only_plans: whether calls are planned now, and nothing runs.
        warned: what has been warned of: a class of models, and a reason.
        recorder: what records runs, to be replayed; why nothing does; or None where none are to be.
        recordings: how many runs have been recorded.
        not_recorded: why graphs are not, and how many.
    """

    mesh: Mesh
    runtime: Runtime | ProcessRuntime | WorkerRuntime
    topology: Topology = field(default_factory=Topology)
    device_compiler: str = "native"
    graphs: int = 0
    newest: ParallelGraph | None = None
    whole_ops: dict[str, int] = field(default_factory=dict)
    in_python: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    whole_calls: int = 0
    plan: Plan | None = None
    followed: dict[str, int] = field(default_factory=dict)
    kept: Kept | None = field(default_factory=of_user)
    batch_by_batch: str | None = None
    only_plans: bool = False
    warned: set[tuple[str, str]] = field(default_factory=set)
    recorder: Recorder | str | None = None
    recordings: int = 0
    not_recorded: dict[str, int] = field(default_factory=dict)
    _release: Callable[[], object] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._release = EFFECTS.hold(self)
        _USERS.setdefault(self.runtime, weakref.WeakSet()).add(self)

    @staticmethod
    def on(mesh: Mesh, target: Target) -> Session:
        """A session whose ranks are those of a mesh.

        Raises:
            TpfxError: the timeout is not above 0.
        """
        kind = WorkerRuntime if mesh.apart else ProcessRuntime if mesh.rank_is_process else Runtime
        runtime = kind(mesh, target.timeout)
        session = Session(mesh, runtime, target.topology or Topology(), target.device_compiler)
        session.recorder = recorder_for(mesh) if target.mode == "reduce-overhead" else None
        return session

    def of_copy(self) -> Session:
        """A session for a copy of the model, which has no graphs yet."""
        fresh: dict[str, Any] = {"followed": {}, "whole_ops": {}, "in_python": {}, "warned": set()}
        return replace(self, graphs=0, runs=0, whole_calls=0, **fresh)

    @property
    def choices(self) -> dict[str, GraphChoices]:
        """How the plan would have graphs carried out, by their fingerprints."""
        return {} if self.plan is None else {one.fingerprint: one.choices for one in self.plan.graphs}

    def followed_of_plan(self) -> list[tuple[str, int]]:
        """The phase of each graph of the plan, and how many graphs were carried out as it says."""
        known = () if self.plan is None else self.plan.graphs
        return [(one.phase, self.followed.get(one.fingerprint, 0)) for one in known]

    def note_planned(self, parallel: ParallelGraph) -> None:
        """A graph has been planned: it is the newest, and may be one of the plan's."""
        self.newest = parallel
        if parallel.recalled:
            found = parallel.fingerprint
            self.followed[found] = self.followed.get(found, 0) + 1
        for op, count in parallel.whole_ops.items():
            self.whole_ops[op] = self.whole_ops.get(op, 0) + count

    def close(self) -> None:
        """End what was started for a model that is not compiled after all, or no longer."""
        users = _USERS[self.runtime]
        users.discard(self)
        if not users:  # copies of a model share it
            self.runtime.close()
        self._release()

    def note_python(self, called: Iterable[str]) -> None:
        """Note what a rank's graph calls in Python."""
        for what in called:
            self.in_python[what] = self.in_python.get(what, 0) + 1

    def count_run(self) -> None:
        """Note that a graph is run."""
        self.runs += 1

    def recording_of(self, graph: Graph, gradients: bool) -> Recording | None:
        """How runs of a planned graph are recorded, if they are; it is noted why they are not."""
        recorder = self.recorder
        if recorder is None:
            return None
        why = recorder if isinstance(recorder, str) else obstacle(graph, self.mesh.devices)
        why = "it is part of a step that computes gradients" if gradients else why
        if why is not None or isinstance(recorder, str):
            self.note_recording(why)
            return None
        return recorder, self.note_recording

    def note_recording(self, why_not: str | None) -> None:
        """Note that a run has been recorded, or why a graph is not."""
        if why_not is None:
            self.recordings += 1
        else:
            self.not_recorded[why_not] = self.not_recorded.get(why_not, 0) + 1


# Sessions of `backend="tpfx"`: one for all models that are compiled for the same devices.

OPTIONS = tuple(field.name for field in fields(Target))

_sessions: weakref.WeakValueDictionary[Target, Session] = weakref.WeakValueDictionary()
_lock = threading.Lock()

# By session, the ids of the modules that hold its weights, and what knows the sizes of its graphs.
_modules: weakref.WeakKeyDictionary[Session, set[int]] = weakref.WeakKeyDictionary()
_sizes: weakref.WeakKeyDictionary[Session, list[Callable[[], Any]]] = weakref.WeakKeyDictionary()


def session_for(options: Mapping[str, Any]) -> Session:
    """What all graphs that are compiled for the same devices share.

    Raises:
        TpfxError: an option, or what it names, is unknown.
    """
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise TpfxError(
            f"options={{{unknown[0]!r}: …}} is unknown to backend='tpfx'; it takes {', '.join(OPTIONS)}"
        )
    target = Target(**options)
    try:
        hash(target)
    except TypeError as problem:
        raise DeviceError(
            f"devices={target.devices!r}: pass a list of devices, an int, or a DeviceMesh"
        ) from problem
    with _lock:
        found = _sessions.get(target)
        if found is None:
            found = _sessions[target] = Session.on(target.mesh(), target)
            _modules[found], _sizes[found] = set(), []
    return found


def session_of(model: torch.nn.Module) -> Session | None:
    """The session that has divided a model's weights, if one has."""
    meshes = {slot.value.mesh for slot in slots_of(model) if hasattr(slot.value, "mesh")}
    sessions = list(_sessions.values())
    like = (one for one in sessions for mesh in meshes if one.mesh.same_as(mesh))  # of a copy of its model
    return next((one for one in sessions if one.mesh in meshes), next(like, None))


def note_sizes(session: Session) -> None:
    """A graph is compiled for a session: Dynamo is told to forget its sizes when that ends."""
    _sizes[session].append(sizes_now())


def end_with(module: torch.nn.Module, session: Session) -> None:
    """Let a session end when the last of the modules that hold its weights has gone."""
    known = _modules[session]
    if id(module) not in known:
        known.add(id(module))
        module.register_state_dict_post_hook(give_addresses)
        weakref.finalize(module, _gone, id(module), session).atexit = False


def end_session(session: Session, modules: Sequence[torch.nn.Module]) -> None:
    """These modules' weights are plain again: a session of `backend="tpfx"` ends, if no others are its."""
    if session in _modules and _modules[session] <= {id(module) for module in modules}:
        for module in list(_modules[session]):
            _gone(module, session)


def _gone(module: int, ended: Session) -> None:
    """A module has gone. If it was the last one, only Dynamo keeps the session now, for its graphs."""
    known = _modules[ended]
    known.discard(module)
    if known:
        return
    targets = {target for target, one in _sessions.items() if one is ended}

    forget_graphs(lambda made_by, options: is_own(made_by) and _target_of(options) in targets)
    forget_sizes(_sizes[ended])
    _sizes[ended].clear()


def _target_of(options: Mapping[str, Any]) -> Target | None:
    """What options of `backend="tpfx"` ask for, if it can be had."""
    try:
        target = Target(**options)
        hash(target)
    except (TypeError, TpfxError):
        return None
    return target
