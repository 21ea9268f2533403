"""The graphs of a model in one state, captured and compiled by Dynamo as calls need them.

state = ModelState.of(model)           # looks at each module: 0.2 ms for a Llama of 12 layers
state.holds()                          # no hook was registered since, no weight changed: 0.3 µs

graphs = Graphs(model, forward, session)
graphs.call(False, args, kwargs)       # what forward returns; captures first, if no graph fits
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..capture.sources import on_leaves
from ..sharded_tensor.model_weights import restore_weights, sharded_weight
from ..sharded_tensor.optimizers import succeed
from ..sharded_tensor.tensor import ShardedTensor
from ..torch_internals.batch_guards import CAN_OPEN_BATCHES, open_batches
from ..torch_internals.dynamo import NOT_CAPTURED, BackendCompilerFailed, Settings, fresh, twin
from ..torch_internals.dynamo_cache import (
    NOT_DIRECT,
    DirectCalls,
    compile_with,
    forget_graphs,
    forget_sizes,
    guard_on_successors,
    sizes_now,
)
from ..torch_internals.module_changes import CHANGES, hook_tables
from ..torch_internals.parameter_slots import Slot, has_memory, slots_of
from .aot_compiler import compile_for_any_batch, compile_graph, compile_graph_later
from .effects import own_backend
from .session import Session


@dataclass(frozen=True)
class ModelState:
    """What a model's graphs rely on that Dynamo does not guard: which hooks there are, how its weights are.

    Attributes:
        key: equal where graphs that were captured then do now.
        hooks: the tables of hooks that were not empty, with the ids in them.
        seen: the number of changes in this process.
        kind: the model's class, and the `forward` that it had.
    """

    key: Hashable
    hooks: tuple[tuple[dict[int, Any], tuple[int, ...]], ...]
    seen: int
    kind: tuple[type[torch.nn.Module], Any]

    @staticmethod
    def of(model: torch.nn.Module, own_hooks: bool = False) -> ModelState:
        """Look at a model, at its own hooks too if its graphs run them."""
        seen = CHANGES.number_to_keep()
        tables = list(hook_tables(model, own_hooks))
        places = tuple((place, tuple(table)) for place, table in tables)
        hooks = tuple((table, tuple(table)) for _, table in tables)
        kind = type(model), type(model).forward
        return ModelState((kind, places, tuple(_weights(model))), hooks, seen, kind)

    def holds(self) -> bool:
        """Whether nothing can have changed since; if not, look again."""
        if CHANGES.number() != self.seen or self.kind[0].forward is not self.kind[1]:
            return False
        return not self.hooks or all(tuple(table) == ids for table, ids in self.hooks)


def _weights(model: torch.nn.Module) -> Iterator[Hashable]:
    """Of each weight: which it is, where tied, its shape and dtype, and whether a gradient is wanted."""
    order: dict[int, int] = {}
    for slot in slots_of(model):
        value = slot.value
        which = order.setdefault(id(value), len(order))
        yield which, type(value), value.shape, value.dtype, value.requires_grad


# What Dynamo guards on inside of a split tensor: the list of its parts, and the one that all have in common.
SUBCLASS_PARTS = (".__tensor_flatten__()[0]", ".probe")

UNSEEN = ModelState(None, (), -1, (torch.nn.Module, None))  # of a model that has not been looked at


class Graphs:
    """The graphs of a model in one state, as Dynamo captures them; it forgets them with this object.

    Steps of one token, of which a generation is made, have graphs of their own, which do for any number of
    rows; until one of them cannot be captured so.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        forward: Callable[..., Any],
        session: Session,
        compiler: Callable[..., Any] = compile_graph,
    ) -> None:
        self.session, self._model = session, weakref.ref(model)
        self.adopted = False  # whether the model was found to have weights that were not split
        self._backends: list[Backend] = []  # another backend object keeps Dynamo from earlier graphs
        weakref.finalize(self, _forget, self._backends).atexit = False
        self._settings = Settings(model)
        forward = fresh(forward)
        self._compiled = self._captured(forward, compiler)
        step = self._captured(twin(forward), compile_for_any_batch, fullgraph=True)
        self._step: Callable[..., Any] | None = step if CAN_OPEN_BATCHES else None
        self._direct = DirectCalls(step)
        session.batch_by_batch = None if CAN_OPEN_BATCHES else "this release of torch does not leave 1 open"

    def _captured(
        self, forward: Callable[..., Any], compiler: Callable[..., Any], fullgraph: bool = False
    ) -> Callable[..., Any]:
        """A forward whose graphs a compiler of this session compiles."""
        backend = Backend(compiler, weakref.ref(self))
        self._backends.append(backend)
        return compile_with(forward, backend, fullgraph, _keep_guards)

    def adopt(self, inputs: Sequence[Any]) -> tuple[Sequence[Any], list[Slot]]:
        """A graph's inputs, with those that the model was given later, as weights, now split.

        Dynamo guards on the types of weights, so it captures anew where a plain one has taken a place.
        """
        plain = {id(value) for value in inputs if has_memory(value)}
        model = self._model()
        places = [] if model is None else [slot for slot in slots_of(model) if id(slot.value) in plain]
        made = {
            id(slot.value): sharded_weight(slot.value, slot.name, self.session.mesh, slot.kind)
            for slot in reversed(places)
        }
        for slot in places:
            if not slot.beside:
                succeed(slot.value, made[id(slot.value)])
            slot.table[slot.key] = made[id(slot.value)]
        if places:
            self.adopted = True
            guard_on_successors(made)
        return [made.get(id(value), value) for value in inputs], places

    def capture(self, any_batch: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Plan a call, for any batch if asked; no graph runs: one that would ends the call."""
        self.session.only_plans = True
        try:
            with self._settings, open_batches() if any_batch and CAN_OPEN_BATCHES else nullcontext():
                return _call(self._compiled, args, kwargs)
        finally:
            self.session.only_plans = False

    def call(self, is_step: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `forward` returns, with what is split in it split."""
        step = self._step if is_step else None
        if step is not None and (found := self._direct(args, kwargs)) is not NOT_DIRECT:
            return found
        with self._settings:
            if step is not None:
                return self._call_step(step, args, kwargs)
            return _call(self._compiled, args, kwargs)

    def _call_step(self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of one token a row."""
        runs = self.session.runs
        try:
            with open_batches():
                result = step(*args, **kwargs)
            self._direct.note()
            return result
        except NOT_CAPTURED as problem:
            if self.session.runs > runs:
                raise
            cause = getattr(problem, "inner_exception", problem)
            self.session.batch_by_batch = str(cause).strip().partition("\n")[0] or type(cause).__name__
        self._step = None
        return _call(self._compiled, args, kwargs)


def _call(compiled: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call, and raise what a pass raised as it is: Dynamo wraps it."""
    try:
        return compiled(*args, **kwargs)
    except BackendCompilerFailed as failure:
        problem = failure.inner_exception
    raise problem


@own_backend
class Backend:
    """What Dynamo calls with a graph. Dynamo keeps it, so it must not keep a session."""

    def __init__(self, compiler: Callable[..., Any], graphs: Callable[[], Graphs | None]) -> None:
        self.compiler, self.graphs = compiler, graphs
        self.sizes: list[Callable[[], Any]] = []

    def __call__(self, module: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """What runs the graph on the session's devices."""
        graphs = self.graphs()
        assert graphs is not None, "the compiled forward that is called now has them"
        self.sizes.append(sizes_now())
        return on_leaves(module, example_inputs, partial(self._compile, graphs))

    def _compile(
        self, graphs: Graphs, module: torch.fx.GraphModule, values: Sequence[Any]
    ) -> Callable[..., Any]:
        inputs, slots = graphs.adopt(values)
        compiler = compile_graph_later if graphs.session.only_plans else self.compiler
        try:
            compiled: Callable[..., Any] = compiler(graphs.session, module, inputs)
        except BaseException:
            restore_weights(slots)
            raise
        return compiled


def _forget(backends: list[Backend]) -> None:
    """Have Dynamo let go of the graphs of some backends."""
    known = {id(backend) for backend in backends}
    forget_graphs(lambda backend, _: id(backend) in known)
    forget_sizes([sizes for backend in backends for sizes in backend.sizes])
    backends.clear()


def _keep_guards(entries: Sequence[Any]) -> list[bool]:
    """Most guards on weights can go: tpfx never changes what a graph relies on, and they cost 1 us a weight.

    Those on their types and ties stay (0.1 us): they notice a weight that has been replaced by a plain one.
    What was plain when it was captured has none on its type, and keeps all. Of what is inside of a split
    tensor, a weight or a state, nothing is asked: its type says it.
    """
    kept = ("TYPE_MATCH", "DUPLICATE_INPUT")
    typed = {entry.name for entry in entries if entry.guard_type == "TYPE_MATCH"}
    split = {entry.name for entry in entries if isinstance(getattr(entry, "value", None), ShardedTensor)}
    return [
        not _is_inside(entry, split)
        and (entry.guard_type in kept or entry.name not in typed or not _of_weight(entry))
        for entry in entries
    ]


def _is_inside(entry: Any, split: Collection[str]) -> bool:
    """Whether a guard is on what a split tensor, one of these names, gives Dynamo as its parts."""
    if entry.guard_type == "TENSOR_SUBCLASS_METADATA_MATCH":
        return entry.name in split
    owner, found, _ = entry.name.rpartition(".")
    return bool(found) and owner in split and entry.name.endswith(SUBCLASS_PARTS)


def _of_weight(entry: Any) -> bool:
    if "._parameters[" not in entry.name and "._buffers[" not in entry.name:
        return False
    value = getattr(entry, "value", None)
    return isinstance(value, ShardedTensor) and value.qualified_name is not None
