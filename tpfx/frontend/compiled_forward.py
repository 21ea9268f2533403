"""What a compiled model has in the place of its `forward`: it checks the inputs, runs the graphs, gathers."""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch

from ..capture.inputs import Inputs, call_of, is_text, varying_sizes
from ..errors import InputError, ModelError
from ..runtime.processes import bytes_of_tensors, require_same
from ..sharded_tensor.tensor import ShardedTensor, gather_tree
from ..torch_internals.batch_guards import CAN_OPEN_BATCHES, open_batches
from ..torch_internals.dynamo import (
    NOT_CAPTURED,
    BackendCompilerFailed,
    Settings,
    dynamic_sizes,
    fresh,
    mark_dynamic_sizes,
    twin,
)
from ..torch_internals.dynamo_cache import compile_with, forget_graphs, forget_sizes, sizes_now
from .aot_compiler import LayoutsChosen, compile_for_any_batch, compile_graph, plan_graph
from .session import Session


class Entry:
    """A compiled `forward`.

    Args:
        model: the model.
        forward: its forward, as it was.
        session: what its graphs share.
    """

    def __init__(self, model: torch.nn.Module, forward: Callable[..., Any], session: Session) -> None:
        functools.update_wrapper(self, forward)
        self._backends: list[Backend] = []  # those of all graphs that Dynamo has now
        weakref.finalize(self, _forget, self._backends).atexit = False
        self.model, self.forward, self.session = model, forward, session
        self._device = session.mesh.devices[session.mesh.owned[0]]
        self._compile()
        self._calls = 0

    def _compile(self) -> None:
        """Graphs are captured anew from now on: another backend object keeps Dynamo from earlier ones.

        Steps of one token, of which a generation is made, have graphs of their own, which do for any
        number of rows; until one of them cannot be captured so.
        """
        _forget(self._backends)
        forward, session = fresh(self.forward), self.session
        self._compiled = self._captured(forward, compile_graph)
        step = self._captured(twin(forward), compile_for_any_batch, fullgraph=True)
        self._step: Callable[..., Any] | None = step if CAN_OPEN_BATCHES else None
        session.batch_by_batch = None if CAN_OPEN_BATCHES else "this release of torch does not leave 1 open"

    def _captured(
        self, forward: Callable[..., Any], compiler: Callable[..., Any], fullgraph: bool = False
    ) -> Callable[..., Any]:
        """A forward whose graphs a compiler of this session compiles."""
        backend = Backend(compiler, self.session)
        self._backends.append(backend)
        return compile_with(forward, backend, fullgraph, {"guard_filter_fn": _keep_guards})

    @functools.cached_property
    def _settings(self) -> Settings:
        return Settings(self.model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What `forward` returns, in plain tensors."""
        tensors = list(_leaves((args, kwargs)))
        if not _lie_on(self._device, tensors):
            self._refuse(args, kwargs)
        if self.session.mesh.group is not None:
            self._require_same_inputs(tensors)
        runs, is_step = self.session.runs, _mark_dynamic(tensors)
        with self._settings:
            if is_step and self._step is not None:
                result = self._call_step(self._step, args, kwargs)
            else:
                result = _call(self._compiled, args, kwargs)
        if self.session.runs == runs:
            self._note_whole_call()
        return gather_tree(result)

    def _call_step(self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of one token a row."""
        runs = self.session.runs
        try:
            with open_batches():
                return step(*args, **kwargs)
        except NOT_CAPTURED as problem:
            if self.session.runs > runs:
                raise
            cause = getattr(problem, "inner_exception", problem)
            self.session.batch_by_batch = str(cause).strip().partition("\n")[0] or type(cause).__name__
        self._step = None
        return _call(self._compiled, args, kwargs)

    def plan(self, given: Inputs) -> None:
        """Choose a placement for the parameters that a call with these inputs uses; runs nothing."""
        args, kwargs = call_of(self.model, given)
        tensors = list(_leaves((args, kwargs)))
        if not _lie_on(self._device, tensors):
            self._refuse(args, kwargs)
        _mark_dynamic(tensors)
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with torch.no_grad(), self._settings:
                _call(self._captured(fresh(self.forward), plan_graph), args, kwargs)
        except LayoutsChosen:
            pass
        finally:
            _forget([self._backends.pop()])
            for module in training:
                module.training = True

    def convert(
        self, module: torch.nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> Any:
        """What `to`, `half` and the like do to a part of the model: change its dtype, in place.

        Raises:
            ModelError: the weights would leave their devices.
        """
        changed: list[tuple[torch.Tensor, torch.dtype]] = []
        for name, value in (
            *module.named_parameters(recurse=recurse),
            *module.named_buffers(recurse=recurse),
        ):
            sample = value.probe if isinstance(value, ShardedTensor) else value
            with torch.no_grad():
                after = fn(sample)
            if after.device != value.device:
                devices = [str(device) for device in self.session.mesh.devices]
                raise ModelError(
                    f"cannot move {name} to {after.device}: the model is split over {devices}; "
                    "tpfx.full_state_dict(model) gives its weights"
                )
            if after.dtype != value.dtype:
                changed.append((value, after.dtype))
        for value, dtype in changed:
            value.data = value.detach().to(dtype)
        if changed:  # the graphs were made for other dtypes
            self._compile()
        return module

    def __deepcopy__(self, memo: dict[int, Any]) -> Entry:
        model = copy.deepcopy(self.model, memo)
        session = replace(self.session, graphs=0, whole_ops={}, runs=0, whole_calls=0)
        return Entry(model, copy.deepcopy(self.forward, memo), session)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        name = type(self.model).__name__
        raise ModelError(f"a compiled {name} cannot be pickled; save tpfx.full_state_dict(model) instead")

    def _require_same_inputs(self, given: Sequence[torch.Tensor]) -> None:
        """Compare the processes' inputs, at the first calls and less and less often later: it takes time."""
        self._calls += 1
        if self._calls < 8 or self._calls.bit_count() == 1:
            plain = (tensor for tensor in given if type(tensor) is torch.Tensor)
            require_same(self.session.mesh, "the inputs", bytes_of_tensors(plain))

    def _note_whole_call(self) -> None:
        """Dynamo has left the call out: it captured nothing of it, or has captured it as often as it will."""
        self.session.whole_calls += 1
        why, see = "Dynamo captured no graph of it, so nothing is split", "graph_breaks"
        if self.session.graphs:
            why, see = "none of its graphs fits this call, and Dynamo makes no more of them", "recompiles"
        warnings.warn(
            f"{type(self.model).__name__} ran whole, on {self._device}: {why}; TORCH_LOGS={see} says more",
            stacklevel=4,
        )

    def _refuse(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> NoReturn:
        names = list(inspect.signature(self.forward).parameters)
        named = [(names[at] if at < len(names) else f"argument {at}", value) for at, value in enumerate(args)]
        for name, value in (*named, *kwargs.items()):
            for where, tensor in _tensors(value, name):
                if not _lie_on(self._device, [tensor]):
                    raise InputError(
                        f"{where} is on {tensor.device}, but the model takes its inputs on {self._device}, "
                        f"its first device; pass {where}.to({str(self._device)!r})"
                    )
        raise AssertionError("every input lies on the first device")


def _lie_on(device: torch.device, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether all do; a number may lie on the CPU."""
    return all(one.device == device or (one.dim() == 0 and one.device.type == "cpu") for one in tensors)


def _leaves(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)


def _tensors(value: Any, where: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield where, value
    elif isinstance(value, (list, tuple)):
        for at, item in enumerate(value):
            yield from _tensors(item, f"{where}[{at}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{where}[{key!r}]")


def _call(compiled: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call, and raise what a pass raised as it is: Dynamo wraps it."""
    try:
        return compiled(*args, **kwargs)
    except BackendCompilerFailed as failure:
        problem = failure.inner_exception
    raise problem


class Backend:
    """What Dynamo calls with a graph. Dynamo keeps it, so it must not keep a session."""

    def __init__(self, compiler: Callable[..., Any], session: Session) -> None:
        self.compiler, self.session = compiler, weakref.ref(session)
        self.sizes: list[Callable[[], Any]] = []

    def __call__(self, module: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """What runs the graph on the session's devices."""
        session = self.session()
        assert session is not None, "the compiled forward that is called now has the session"
        self.sizes.append(sizes_now())
        compiled: Callable[..., Any] = self.compiler(session, module, example_inputs)
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
    """
    kept = ("TYPE_MATCH", "DUPLICATE_INPUT")
    return [entry.guard_type in kept or not _of_weight(entry) for entry in entries]


def _of_weight(entry: Any) -> bool:
    if "._parameters[" not in entry.name and "._buffers[" not in entry.name:
        return False
    value = getattr(entry, "value", None)
    return isinstance(value, ShardedTensor) and value.qualified_name is not None


def _mark_dynamic(inputs: Sequence[torch.Tensor]) -> bool:
    """Say of batch and length that they will vary, so that one graph serves all.

    Returns:
        Whether some text has one token a row: sizes of 1 but the batch are constants.
    """
    is_step = False
    for leaf in inputs:
        plain = type(leaf) is torch.Tensor
        if not leaf.dim() or not (plain or _is_made_eagerly(leaf)):
            continue
        is_step |= plain and is_text(leaf) and leaf.shape[1] == 1
        if dynamic_sizes(leaf) is None:
            varying = varying_sizes(leaf)
            ones = {dim for dim, size in enumerate(leaf.shape) if size == 1} - varying
            mark_dynamic_sizes(leaf, varying, ones)
    return is_step


def _is_made_eagerly(value: torch.Tensor) -> bool:
    """Whether code between two calls has made a split tensor of another; graphs mark what they return.

    Of a view Dynamo knows the sizes by those of its base.
    """
    return isinstance(value, ShardedTensor) and value.qualified_name is None and value._base is None
