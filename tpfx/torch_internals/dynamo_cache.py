"""What Dynamo remembers of what it has compiled, and for whom.

compiled = compile_with(forward, backend)     # torch.compile, with a backend that Dynamo does not keep alive
forget_graphs(lambda made_by: made_by is backend)

direct = DirectCalls(compiled)                # of `compile_with(method, backend, fullgraph=True)`
found = direct(args, kwargs)                  # NOT_DIRECT: call `compiled` itself, which looks further
direct.note()                                 # it has
"""

from __future__ import annotations

import functools
import gc
import inspect
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list, get_eval_frame_callback
from torch._dynamo import convert_frame, eval_frame
from torch._dynamo.guards import CheckFunctionManager, DeletedGuardManagerWrapper
from torch._dynamo.utils import guard_failures
from torch._guards import TracingContext
from torch.fx import _symbolic_trace
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.weak import TensorWeakRef

from ..console.progress import working
from .dynamo import capturing_again, capturing_sizes_of_values, capturing_without
from .effects import Effect, replace_in
from .fake import quick_sizes

Backend = Callable[..., Any]


def compile_with(
    forward: Callable[..., Any],
    backend: Backend,
    fullgraph: bool,
    keeps: Callable[[Sequence[Any]], list[bool]],
) -> Callable[..., Any]:
    """`torch.compile`, with those guards that `keeps` says, of Dynamo's entries of them, are needed.

    Dynamo keeps every backend that it has seen, to reset it, and ours has nothing to. While a call runs that
    is said to be one graph, it captures nothing, in no thread; before 2.12, after two at once, never again
    what captured code calls. So a function that has to be one graph is not called as such.
    """

    def kept_guards(entries: Sequence[Any]) -> list[bool]:
        # They are made again, of those that are kept: by then a property may return another object.
        for entry in entries:
            entry.orig_guard.obj_weakref = None
        return keeps(entries)

    options: dict[str, Any] = {"guard_filter_fn": kept_guards}
    compiled: Callable[..., Any] = torch.compile(
        forward, backend=backend, fullgraph=fullgraph, options=options
    )
    for key, kept in list(eval_frame.cached_backends.items()):
        if _given(kept)[0] is backend:
            eval_frame.cached_backends.pop(key, None)
    if fullgraph:  # what captures it stays as it is
        cells = dict(zip(compiled.__code__.co_freevars, compiled.__closure__ or (), strict=True))
        cells["self"].cell_contents.fullgraph = False
    return compiled


def capture_for(
    made_by: Callable[[Backend], bool],
    kinds: Iterable[type[torch.Tensor]],
    tell: Callable[[CodeType, Mapping[str, Any], str], None],
) -> Effect:
    """Dynamo captures code for some backends however often it has captured that code before.

    It counts captures by code, which all models of a class have in common and modules of torch with all
    others, and above a limit runs what calls it as it is. Other backends keep their limits.

    Their graphs have ops in them whose results' sizes values tell. Other backends, in turn, get no graph that
    takes tensors of some kinds: ops on such run as they are.

    Args:
        made_by: whether it is one of them, given the backend.
        kinds: the classes of tensors that no other backend can compile.
        tell: is called where code has been captured again, with its variables, and what of an earlier
            graph did not hold.
    """

    def change(capture: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(capture)

        def captured(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            backend, code = _given(given["compiler_fn"])[0], given["code"]
            if not made_by(backend):
                with capturing_without(kinds):
                    return capture(*args, **kwargs)
            before = len(guard_failures.get(code, ()))
            what = working(f"capturing {_named(given['locals'])}")
            with what, capturing_again(), collector_waiting(), quick_sizes():
                made = capturing_sizes_of_values(lambda: capture(*args, **kwargs))
            for failure in guard_failures.get(code, ())[before : before + 1]:
                tell(code, given["locals"], failure)
            return made

        return captured

    return Effect("captures by backend", lambda: replace_in(vars(convert_frame), "_compile", change))


def _named(variables: Mapping[str, Any]) -> str:
    """What is captured, by the variables of its code: the class of the module whose it is, if known."""
    owner = next((value for value in variables.values() if isinstance(value, torch.nn.Module)), None)
    return "the model" if owner is None else type(owner).__name__


def in_place_for_captures(
    made_by: Callable[[Backend], bool], around: Callable[[], AbstractContextManager[Any]]
) -> Effect:
    """While Dynamo captures code for some backends, something is in place: what it finds then, it goes by.

    Args:
        made_by: whether it is one of them, given the backend.
        around: what is in place, made anew for each capture; it may change how Dynamo captures.
    """
    inside = ContextVar("inside", default=False)  # of a capture in this thread

    def change(capture: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(capture)

        def captured(*args: Any, **kwargs: Any) -> Any:
            backend = _given(signature.bind(*args, **kwargs).arguments["compiler_fn"])[0]
            if inside.get() or not made_by(backend):
                return capture(*args, **kwargs)
            before = inside.set(True)
            try:
                with around():
                    return convert_frame._compile(*args, **kwargs)  # whoever has changed it by now
            finally:
                inside.reset(before)

        return captured

    return Effect("in place for captures", lambda: replace_in(vars(convert_frame), "_compile", change))


@contextmanager
def capturing_for(backend: Backend) -> Iterator[None]:
    """For captures by one backend that no effect is in place for: as `capture_for` has it."""
    undo = capture_for(lambda made_by: made_by == backend, (), lambda *_: None).install()
    try:
        yield
    finally:
        undo()


@contextmanager
def collector_waiting() -> Iterator[None]:
    """Python's collector of cycles waits: what a capture makes mostly stays, and to look through it again and
    again takes a tenth of a capture's time, of a deep model's a fifth."""
    if not gc.isenabled():  # within another capture, or as the user has it
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def forget_graphs(made_by: Callable[[Backend, Mapping[str, Any]], bool]) -> None:
    """Let go of the graphs of some backends, which Dynamo keeps with the code that they were captured from.

    That code is captured anew if it is called again. Of a class's `forward`, and of what Dynamo goes on with
    after a graph break, it is the code of all models of the class, and as old.

    Args:
        made_by: whether it is one of them, given a backend and the options that it was given.
    """
    guards = []
    for entry in list(_entries()):
        state = getattr(entry.guard_manager, "extra_state", None)
        if state is not None and made_by(*_given(entry.backend)):
            guards.append(entry.guard_manager)
            state.invalidate(entry, DeletedGuardManagerWrapper("its model was deleted"))
    _forget_guards(guards)
    for known in (convert_frame.input_codes.seen, convert_frame.output_codes.seen):
        for gone in [one for one in list(known) if one() is None]:
            known.remove(gone)


def _forget_guards(guards: list[Any]) -> None:
    """Let go of guards that are of no graph any more.

    Dynamo keeps guards until each class and function that they compare with has gone, which is never.
    """
    gone = {id(one) for one in guards}
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        known = finalizer.peek()
        owner = getattr(getattr(known[1], "func", None), "__self__", None) if known else None
        if isinstance(owner, CheckFunctionManager) and id(getattr(owner, "guard_manager", None)) in gone:
            finalizer.detach()  # one whose making has failed has no guards


def sizes_now() -> Callable[[], Any]:
    """A weak reference to what knows the sizes that vary in the graph that is compiled now."""
    context = TracingContext.try_get()
    mode = None if context is None else context.fake_mode
    env = None if mode is None else mode.shape_env
    return (lambda: None) if env is None else weakref.ref(env)


def guard_on_successors(replaced: Collection[int]) -> None:
    """Of tensors that were replaced while a graph of theirs is compiled, guard on those that are there now.

    Dynamo would guard on the ones that it has seen, if something keeps them alive, and find others there.

    Args:
        replaced: the ids of the tensors that the graph was captured with.
    """
    context = TracingContext.try_get()
    for guard in () if context is None else context.guards_context.dynamo_guards:
        make: Any = guard.create_fn
        seen = getattr(make, "keywords", {}).get("value")
        if isinstance(seen, TensorWeakRef) and id(seen()) in replaced:
            guard.create_fn = functools.partial(make.func, *make.args, **{**make.keywords, "value": None})


def forget_sizes(known: Iterable[Callable[[], Any]]) -> None:
    """Let go of what `sizes_now` has found, once the graphs are gone.

    It knows the fake inputs of the capture, and those know it by their sizes, unseen by Python's garbage
    collection. Its methods remember what they said, and of which object.
    """
    for sizes in known:
        found = sizes()
        if found is not None:
            found.tracked_fakes = None
    for method in vars(ShapeEnv).values():
        if hasattr(method, "cache_clear"):
            method.cache_clear()


def _entries() -> Iterator[Any]:
    """What Dynamo has compiled, of any code."""
    for known in list(convert_frame.input_codes.seen):
        code = known()
        if code is not None:
            yield from _debug_get_cache_entry_list(code)


def _given(backend: Any) -> tuple[Backend, Mapping[str, Any]]:
    """The backend, and its options, that `torch.compile` was given."""
    inner: Any = eval_frame.innermost_backend(backend)
    return getattr(inner, "compiler_fn", inner), getattr(inner, "kwargs", {}).get("options") or {}


NOT_DIRECT: Any = object()

_USUAL = eval_frame.DynamoStance()


class DirectCalls:
    """Calls the code that Dynamo has compiled last of one method, if all of its guards hold.

    Dynamo asks the guards of each graph, in C++, from a hook on every frame, within a wrapper of Python that
    takes as long again. Here the same guards, those of the graph that was used last, are asked of the same
    arguments, and its code is called. Where the wrapper would do anything else, it is left to it.

    Args:
        compiled: what `torch.compile` has made of the method: one graph, which does not break, so that Dynamo
            has nothing to capture on the way.
    """

    def __init__(self, compiled: Callable[..., Any]) -> None:
        method: Any = compiled._torchdynamo_orig_callable  # type: ignore[attr-defined]
        self._function: FunctionType = getattr(method, "__func__", method)
        self._owner = (method.__self__,) if isinstance(method, MethodType) else ()
        self._arguments = _arguments_of(self._function)
        self._cells = list(
            zip(self._function.__code__.co_freevars, self._function.__closure__ or (), strict=True)
        )
        # The guards of a graph, what asks them, and the code: one object, as several threads may call.
        self._known: tuple[Any, Callable[[Mapping[str, Any]], bool], Callable[..., Any]] | None = None

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the method returns; `NOT_DIRECT`, before anything has run, where Dynamo must be asked."""
        known = self._known
        if known is None or not _is_usual():
            return NOT_DIRECT
        guards, hold, run = known
        if guards.cache_entry is None:  # Dynamo has let go of the graph, or something it relies on has gone
            self._known = None
            return NOT_DIRECT
        values = self._arguments(*self._owner, *args, **kwargs)
        for name, cell in self._cells:
            values[name] = cell.cell_contents
        return run(*self._owner, *args, **kwargs) if hold(values) else NOT_DIRECT

    def note(self) -> None:
        """Dynamo has been asked: what it has used may be called from now on."""
        own = self._function
        entry = next(iter(_debug_get_cache_entry_list(own.__code__)), None)  # that used last comes first
        if entry is None or not _has_same_arguments(entry.code, own.__code__):
            self._known = None
            return
        run = FunctionType(entry.code, own.__globals__, own.__name__, own.__defaults__, own.__closure__)
        run.__kwdefaults__ = own.__kwdefaults__
        self._known = entry.guard_manager, entry.guard_manager.root.check, run


def _is_usual() -> bool:
    """Whether Dynamo's wrapper would do no more than look for a graph."""
    return (
        (eval_frame._stance is _USUAL or eval_frame._stance == _USUAL)
        and get_eval_frame_callback() is None
        and TracingContext.try_get() is None
        and not _symbolic_trace.is_fx_symbolic_tracing()
        and not torch.compiler.is_exporting()
        and not torch._C._is_tracing()
    )


_SHAPE = ("co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_freevars")


def _has_same_arguments(code: CodeType, original: CodeType) -> bool:
    flags = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
    count = len(_names_of(original))
    return (
        all(getattr(code, name) == getattr(original, name) for name in _SHAPE)
        and code.co_flags & flags == original.co_flags & flags
        and code.co_varnames[:count] == original.co_varnames[:count]
    )


def _names_of(code: CodeType) -> tuple[str, ...]:
    """The names of all arguments: positional ones, those that must be named, `*args` and `**kwargs`."""
    starred = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + starred]


def _arguments_of(function: FunctionType) -> Callable[..., dict[str, Any]]:
    """A function that takes the same arguments, and returns them by name: what Dynamo's guards look at."""
    code = function.__code__
    names = list(_names_of(code))
    starred = names[code.co_argcount + code.co_kwonlyargcount :]
    several = starred.pop(0) if code.co_flags & inspect.CO_VARARGS else ""
    given = [*names[: code.co_argcount]]
    if code.co_posonlyargcount:
        given.insert(code.co_posonlyargcount, "/")
    if several or code.co_kwonlyargcount:
        given.append(f"*{several}")
    given += names[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    given += [f"**{name}" for name in starred]
    space: dict[str, Any] = {}
    exec(f"def arguments({', '.join(given)}): return locals()", space)
    made: FunctionType = space["arguments"]
    made.__defaults__, made.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return made
