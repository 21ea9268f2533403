"""What a compiled model has in the place of its `forward`: it checks the inputs, runs the graphs, gathers."""

from __future__ import annotations

import copy
import functools
import threading
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from types import MethodType
from typing import Any, NoReturn

import torch

from ..capture.inputs import Inputs, call_of
from ..errors import InputError, ModelError, ShardingError
from ..execution.arguments import OtherWeight
from ..execution.gradients import NOT_TRANSFORMED
from ..execution.results import gather_tree
from ..runtime.data_parallel import average_gradients
from ..runtime.processes import bytes_of_tensors, require_same
from ..sharded_tensor.even_storage import store_evenly
from ..sharded_tensor.model_weights import adopt_weights, convert_weight, load_into_place
from ..sharded_tensor.state_tensor import give_addresses
from ..sharded_tensor.storage import CALLS
from ..sharded_tensor.tensor import ShardedTensor
from ..torch_internals.aot import in_transform
from ..torch_internals.dynamo import FailedOp, captures_frames, needs_a_frame
from ..torch_internals.module_changes import CHANGES
from ..torch_internals.parameter_slots import slots_of, with_hooks
from .aot_compiler import LayoutsChosen
from .call_inputs import (
    brought_to,
    described,
    leave_sizes_open,
    lies_on,
    require_contents,
    tensors_in,
    unfit,
)
from .graphs import UNSEEN, Graphs, ModelState
from .plain_copy import StandIn, lead_parts
from .recaptures import note_state
from .report import said_of
from .session import Session
from .undivided import warn_of

KEPT_STATES = 4  # of one model: with and without a hook, with weights frozen and not


class _Inside(threading.local):
    """The sessions of the entries that are being called in this thread."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []


_inside = _Inside()


class Entry(StandIn):
    """A compiled `forward`.

    Args:
        model: the model.
        forward: its forward, as it was.
        session: what its graphs share.
    """

    own_hooks = False  # whether its graphs run the hooks of the model itself, too

    def __init__(self, model: torch.nn.Module, forward: Callable[..., Any], session: Session) -> None:
        functools.update_wrapper(self, forward)
        self.model, self.forward, self.session = model, forward, session
        self._of_class = getattr(forward, "__func__", None) is type(model).forward
        self._device = session.mesh.devices[session.mesh.owned[0]]
        self._looking = threading.Lock()
        self._state = UNSEEN  # a copy is made of a model before its parts are there
        self._by_state: dict[Hashable, Graphs] = {}
        self._calls = 0
        self._closed = False
        self._worked: str | None = None  # what the first call was given that the model could take
        self.methods: dict[str, Entry] = {}  # others of the model that are compiled
        self.parts: dict[int, Entry] = {}  # submodules that were called by themselves, by their ids
        self.signed = forward  # what has the arguments' names
        self._stored_after = -1  # so many graphs were the weights that none has reached divided evenly

    def _look_again(self) -> None:
        """The model may have been changed: use the graphs that were captured of it as it is now."""
        with self._looking:
            if not self._state.holds():  # another thread may have looked
                self._look()

    def _look(self) -> None:
        if self._of_class:  # which may have been given another since
            self.forward = MethodType(type(self.model).forward, self.model)
        adopt_weights(self.model, self.session.mesh)
        self.prepare_modules()
        self._stored_after = -1
        state = ModelState.of(self.model, self.own_hooks)
        graphs = self._by_state.pop(state.key, None)
        if graphs is None:
            graphs = Graphs(self.model, self.forward, self.session)
            if self._by_state:
                note_state(self.model, self.forward.__name__)
        self._graphs = graphs
        self._by_state[state.key] = self._graphs  # in the order in which they were used
        self._state = state  # the last, since other threads go by it
        if len(self._by_state) > KEPT_STATES:
            del self._by_state[next(iter(self._by_state))]

    def _go_on_with_adopted(self) -> None:
        """The graphs that are used now have made weights of this model split ones."""
        self._graphs.adopted = False
        self.prepare_modules()
        self._by_state.pop(self._state.key, None)
        self._state = ModelState.of(self.model, self.own_hooks)
        self._by_state[self._state.key] = self._graphs

    def prepare_modules(self) -> None:
        """Have a say in what `to`, `half`, `load_state_dict` and `state_dict` do with any of its parts."""
        for module in self.model.modules():
            if "_apply" not in vars(module):
                module._apply = functools.partial(self.convert, module)  # type: ignore[method-assign]
                module.register_load_state_dict_pre_hook(load_into_place)
                module.register_state_dict_post_hook(give_addresses)
        lead_parts(self.model, self.call_part)
        if self.session.mesh.replicas is not None:
            average_gradients(self.model, self.session.mesh)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What `forward` returns, in plain tensors.

        Raises:
            InputError: the model cannot take what it is given.
            ModelError: torch.func, or a forward-mode derivative, would go through split weights.
        """
        if self._closed:
            return self.forward(*args, **kwargs)
        if self.session in _inside.sessions:  # called by a method of the model that is compiled
            return self.call_inside(args, kwargs)
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            self._refuse_to_be_traced()
        try:
            return self._call(args, kwargs)
        except (NotImplementedError, RuntimeError, ShardingError) as problem:
            if isinstance(problem, InputError) or not in_transform():
                raise
            raise ModelError(
                f"{type(self.model).__name__} is split over {self.session.mesh.size} devices, and "
                f"{NOT_TRANSFORMED}"
            ) from problem

    def call_inside(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What is returned to the model's own code, of which Dynamo captures what it can."""
        return self.forward(*args, **kwargs)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = list(tensors_in((args, kwargs)))
        if not all(lies_on(self._device, one) for one in tensors):
            args, kwargs = self._brought(args, kwargs)
            tensors = list(tensors_in((args, kwargs)))
        if self.session.mesh.group is not None:
            self._require_same_inputs(tensors)
        runs, is_step = self.session.runs, leave_sizes_open(tensors)
        if not self._state.holds():
            self._look_again()
        result = self._run_fitting(is_step, args, kwargs)
        if self._graphs.adopted:
            self._go_on_with_adopted()
        if self.session.runs == runs:
            self.note_whole_call()
        if self._worked is None:
            self._worked = described(self.signed, args, kwargs)
        if self.session.graphs != self._stored_after:
            self.store_the_rest()
        return gather_tree(result)

    def _run_fitting(self, is_step: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the graphs return; others, where one split weight is in the place of another."""
        runs = self.session.runs
        try:
            return self._run(partial(self._graphs.call, is_step), args, kwargs)
        except OtherWeight:  # Dynamo has not been told
            if self.session.runs > runs:
                raise
        CHANGES.note()
        self._look_again()
        return self._run(partial(self._graphs.call, is_step), args, kwargs)

    def _run(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call of the graphs returns.

        Raises:
            InputError: an op cannot take what it is given, as Dynamo has found.
        """
        name = type(self.model).__name__
        _inside.sessions.append(self.session)
        CALLS.running = True
        try:
            return call(args, kwargs)
        except FailedOp as problem:
            failed = problem
        finally:
            _inside.sessions.pop()
            CALLS.running = bool(_inside.sessions)
        raise unfit(name, self.signed, (args, kwargs), self._worked, failed)

    def _brought(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the call is given, on the first device."""
        require_contents(self.forward, args, kwargs)
        return brought_to(self._device, args), brought_to(self._device, kwargs)

    def plan(self, given: Inputs, keep: bool = False) -> None:
        """Choose a placement for the parameters that a call with these inputs uses; runs nothing.

        Args:
            given: the inputs.
            keep: whether its graph is one for later calls too, of any batch.
        """
        args, kwargs = call_of(self.model, given)
        args, kwargs = self._brought(args, kwargs)
        leave_sizes_open(list(tensors_in((args, kwargs))))
        if keep:
            self._look_again()
        graphs = self._graphs if keep else Graphs(self.model, self.forward, self.session)
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with torch.no_grad():
                self._run(partial(graphs.capture, keep), args, kwargs)
        except LayoutsChosen:
            pass
        finally:
            for module in training:
                module.training = True

    def store_the_rest(self) -> None:
        """Divide evenly, as storage, the weights that no graph has reached so far."""
        if in_transform():  # of torch.func, which would take part in all that is made now
            return
        self._stored_after = self.session.graphs
        store_evenly((slot.value for slot in slots_of(self.model)), self.session.mesh)
        if self.session.newest is not None:  # else it has been said that all ran whole
            warn_of(self.model, self.session)

    def call_part(self, part: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a submodule returns; called from outside, it has graphs of its own, with the same weights."""
        entry = self.parts.get(id(part))
        if entry is None:
            entry = self.parts.setdefault(id(part), PartEntry(part, self))
        return entry(*args, **kwargs)

    def convert(
        self, module: torch.nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> Any:
        """What `to`, `half` and the like do to a part of the model: change its dtype, in place.

        Raises:
            ModelError: the weights would leave their devices.
        """
        changed: list[tuple[torch.Tensor, torch.Tensor]] = []
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
                changed.append((value, after))
        for value, after in changed:
            convert_weight(self.model, value, after)
        return module

    def extra_repr(self) -> str:
        """What `repr(model)` says first; then what its class has it say."""
        own = type(self.model).extra_repr(self.model)
        return "\n".join(filter(None, (said_of(self.session), own)))

    def close(self) -> None:
        """The model is plain again: whoever has this still calls the model's own forward."""
        for other in (*self.methods.values(), *self.parts.values()):
            other.close()
        self._closed = True
        self._by_state.clear()
        vars(self).pop("_graphs", None)
        self.session.close()

    def _refuse_to_be_traced(self) -> NoReturn:
        raise ModelError(
            f"a compiled {type(self.model).__name__} cannot be exported or traced so; call "
            "tpfx.unshard(model) first"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Entry:
        model = copy.deepcopy(self.model, memo)
        return Entry(model, copy.deepcopy(self.forward, memo), self.session.of_copy())

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        name = type(self.model).__name__
        raise ModelError(
            f"a compiled {name} cannot be pickled; save tpfx.full_state_dict(model), or "
            "tpfx.unshard(model) itself"
        )

    def _require_same_inputs(self, given: Sequence[torch.Tensor]) -> None:
        """Compare the processes' inputs, at the first calls and less and less often later: it takes time."""
        self._calls += 1
        if self._calls < 8 or self._calls.bit_count() == 1:
            plain = (tensor for tensor in given if type(tensor) is torch.Tensor)
            require_same(self.session.mesh, "the inputs", bytes_of_tensors(plain))

    def note_whole_call(self) -> None:
        """Dynamo has left the call out: it captured nothing of it, or was told to capture no more."""
        self.session.whole_calls += 1
        why, see = "Dynamo captured no graph of it, so nothing is split", "graph_breaks"
        if self.session.graphs:
            why, see = "none of its graphs fits this call, and Dynamo makes no more of them", "recompiles"
        name = type(self.model).__name__
        if (name, why) not in self.session.warned:
            self.session.warned.add((name, why))
            warnings.warn(
                f"{name} ran whole, on {self._device}: {why}; TORCH_LOGS={see} says more", stacklevel=4
            )


class PartialEntry(Entry):
    """A compiled callable that may have nothing to compute, or no tensors: then it runs as it is."""

    captured = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What is returned, in plain tensors."""
        if not self.captured or next(tensors_in((args, kwargs)), None) is None:
            return self.forward(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def note_whole_call(self) -> None:
        """There was nothing to compile; a weight that it did use is in the report, as gathered."""
        self.captured = False


class PartEntry(PartialEntry):
    """A compiled submodule, with its hooks. Its weights are the model's, and are divided with the rest."""

    own_hooks = True

    def __init__(self, part: torch.nn.Module, whole: Entry) -> None:
        super().__init__(part, MethodType(with_hooks, part), whole.session)
        self.whole, self.signed = whole, part.forward
        self._left_out = needs_a_frame(part.forward)

    def call_inside(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What is returned to code of the model that Dynamo leaves out of all graphs.

        Of that it captures what the code calls, but for torch's own modules: those have graphs of their own.
        """
        if not self._left_out or not captures_frames():
            return self.forward(*args, **kwargs)
        runs = self.session.runs
        leave_sizes_open(list(tensors_in((args, kwargs))))
        if not self._state.holds():
            self._look_again()
        result = self._run_fitting(False, args, kwargs)
        if self._graphs.adopted:
            self._go_on_with_adopted()
        self.captured = self.session.runs > runs
        return result

    def _run(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call of the graphs returns; inside of one of the model, that says what an op cannot take."""
        if self.session in _inside.sessions:
            return call(args, kwargs)
        return super()._run(call, args, kwargs)

    def prepare_modules(self) -> None:
        """The whole model's are, and have been where that is being called."""
        if self.session not in _inside.sessions:
            self.whole.prepare_modules()

    def store_the_rest(self) -> None:
        """Divide what no graph of the whole model has reached."""
        self._stored_after = self.session.graphs
        self.whole.store_the_rest()

    def note_whole_call(self) -> None:
        """Dynamo has left the part out, as it does some of torch's, whose weights are gathered then."""
        self.captured = False
        Entry.note_whole_call(self)
