"""Dynamo: its settings, sizes that vary, and code of its own for each compiled method."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import reduce
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch._dynamo import external_utils, trace_rules
from torch._dynamo.exc import BackendCompilerFailed as BackendCompilerFailed
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException, TorchRuntimeError
from torch._dynamo.source import AttrSource
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, PendingUnbackedSymbolNotFound

from .effects import Effect, Undo

_serials = itertools.count()

# What is raised where code asks for a size that only the values of a call can tell.
ASKS_FOR_A_SIZE = (GuardOnDataDependentSymNode, PendingUnbackedSymbolNotFound)

# What a call of a function that shall be one graph raises, before anything has run, where it cannot be.
NOT_CAPTURED = (TorchDynamoException, FailOnRecompileLimitHit, *ASKS_FOR_A_SIZE)


FailedOp = TorchRuntimeError  # an op cannot take its operands, as Dynamo finds while it captures


def reason_of(problem: FailedOp) -> str:
    """What the op itself has said that failed while Dynamo captured it; a size that varies is `?`."""
    said = re.search(r"got \w+\((['\"])(.*)\1\)", str(problem), re.DOTALL)
    text = said[2] if said else str(problem).partition("\n")[0]
    return re.sub(r"\bs\d+\b", "?", re.sub(r"\bs\d+: hint = (\d+)", r"\1", text)).rstrip(".")


def place_of(problem: FailedOp) -> str | None:
    """The line of the model's code that failed, outside of torch's own modules."""
    lines = [frame for frame in problem.real_stack if "/torch/" not in frame.filename]
    return f"{lines[-1].filename}:{lines[-1].lineno}: {lines[-1].line}" if lines else None


def skip_frames(package: str) -> Effect:
    """Dynamo does not trace a package's own functions, where eager ops between graphs lead into them."""

    def install() -> Undo:
        before = list(trace_rules.SKIP_DIRS)
        trace_rules.add(package)
        added = [folder for folder in trace_rules.SKIP_DIRS if folder not in before]

        def undo() -> bool:
            for folder in added:
                if folder in trace_rules.SKIP_DIRS:
                    trace_rules.SKIP_DIRS.remove(folder)
            trace_rules._recompile_re()
            return True

        return undo

    return Effect(f"frames of {package} are skipped", install)


class Settings:
    """Dynamo's settings while a compiled model is called; `config.patch` does the same and takes 45 µs.

    Numbers that vary from call to call are constants, each with a graph of its own: as inputs they reach
    AOTAutograd as tensors whose values it refuses to read, and the model would run whole. LSTMs, which Dynamo
    leaves out by default, and often the frame around them, are single ops, and may as well be captured; GRUs
    and plain RNNs would be unrolled, a graph for each length.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._values: dict[str, Any] = {"specialize_float": True}
        if any(isinstance(module, torch.nn.LSTM) for module in model.modules()):
            self._values["allow_rnn"] = True
        self._before: list[dict[str, Any]] = []

    def __enter__(self) -> None:
        config = torch._dynamo.config
        self._before.append({name: getattr(config, name) for name in self._values})
        for name, value in self._values.items():
            setattr(config, name, value)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.pop().items():
            setattr(torch._dynamo.config, name, value)


def capturing_again() -> AbstractContextManager[Any]:
    """For captures by a backend of their own: code may have been captured any number of times before.

    Dynamo counts earlier captures of a function, by other backends too, and above a limit leaves it out.
    """
    patch = torch._dynamo.config.patch(recompile_limit=2**31, accumulated_recompile_limit=2**31)
    return patch  # type: ignore[no-any-return]


def capturing_sizes_of_values(capture: Callable[[], Any]) -> Any:
    """Capture ops whose results have as many rows as the values say, `x[mask]`, in the graph around them.

    Dynamo leaves them out by default: the loop of a mixture around its experts would run whole. Where code
    then asks for such a size, which only a call can tell, it is captured with these ops left out.
    """
    try:
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            return capture()
    except Exception as problem:
        if not any(isinstance(one, ASKS_FOR_A_SIZE) for one in _causes(problem)):
            raise
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=False):
        return capture()


def _causes(problem: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while problem is not None and id(problem) not in seen:
        seen.add(id(problem))
        yield problem
        problem = getattr(problem, "inner_exception", None) or problem.__cause__ or problem.__context__


def capturing_without(kinds: Iterable[type[torch.Tensor]]) -> AbstractContextManager[Any]:
    """For captures of graphs that take no tensors of these classes; ops on such break the graph."""
    left_out = {*torch._dynamo.config.nontraceable_tensor_subclasses, *kinds}
    patch = torch._dynamo.config.patch(nontraceable_tensor_subclasses=left_out)
    return patch  # type: ignore[no-any-return]


def dynamic_sizes(tensor: torch.Tensor) -> set[int] | None:
    """The dimensions whose size graphs should not be specialised on; None where that has not been said."""
    return getattr(tensor, "_dynamo_weak_dynamic_indices", None)


def mark_dynamic_sizes(tensor: torch.Tensor, dims: set[int], constant: set[int] | None = None) -> None:
    """Say that these dimensions vary from call to call; Dynamo specialises where the model asks for it.

    Others are constants until they have varied, and `constant` ones always.
    """
    tensor._dynamo_weak_dynamic_indices = dims  # type: ignore[attr-defined]
    if constant:
        tensor._dynamo_static_indices = constant  # type: ignore[attr-defined]


def fresh(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same method with code of its own, by another name.

    Dynamo remembers by its code, or by the file, line and name of that, which sizes and numbers have varied
    and how often a function was captured; methods of all models have that in common. What Dynamo would not
    trace by itself, as the methods of torch's own modules, it calls from a frame that all of them share.
    """
    frame = external_utils.wrap_inline(forward) if needs_a_frame(forward) else forward
    return _with_code(frame, lambda code: code.replace(co_name=f"{code.co_name}_{next(_serials)}"))


def needs_a_frame(forward: Callable[..., Any]) -> bool:
    """Whether Dynamo captures a function only with what calls it, as it does methods of torch's modules."""
    return not isinstance(getattr(forward, "__func__", None), FunctionType) or trace_rules.check(forward)


def captures_frames() -> bool:
    """Whether Dynamo looks at what this thread runs now, and not within `torch.compiler.disable`."""
    return callable(get_eval_frame_callback())


def as_code_of(function: Callable[..., Any], other: Any) -> FunctionType:
    """A function that Dynamo takes for one of the file that another is in: it traces both or neither."""
    assert isinstance(function, FunctionType), "a function of Python"
    file = getattr(getattr(other, "__code__", None), "co_filename", function.__code__.co_filename)
    function.__code__ = function.__code__.replace(co_filename=file)
    return function


def twin(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same method with other code by the same name: graphs of its own, and in common what varies."""
    return _with_code(forward, lambda code: code.replace())


def _with_code(forward: Callable[..., Any], change: Callable[[CodeType], CodeType]) -> Callable[..., Any]:
    function = getattr(forward, "__func__", forward)
    assert isinstance(function, FunctionType), "`fresh` gives a frame to anything else"
    made = FunctionType(
        change(function.__code__),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    return made if function is forward else MethodType(made, forward.__self__)  # type: ignore[attr-defined]


def as_of_dynamo(made: GraphModule, module: GraphModule) -> GraphModule:
    """A graph made of one of Dynamo's, which knows of inputs by the same names what Dynamo has noted."""
    made.meta = module.meta
    if hasattr(module, "_param_name_to_source"):
        made._param_name_to_source = module._param_name_to_source
    known = {node.target: node for node in module.graph.find_nodes(op="placeholder")}
    for own in made.graph.find_nodes(op="placeholder"):
        if hasattr(known.get(own.target), "_dynamo_source"):
            own._dynamo_source = known[own.target]._dynamo_source
    return made


def source_name(node: Node) -> str:
    """Where Dynamo has found an input of a graph, as code: `L['self']._parameters['weight']`."""
    source = getattr(node, "_dynamo_source", None) or getattr(node.meta.get("grapharg"), "source", None)
    return getattr(source, "name", None) or ""


def note_source_inside(made: Node, node: Node, path: Iterable[str]) -> None:
    """An input is a tensor inside of another of Dynamo's inputs, at a path of attributes."""
    source = getattr(node, "_dynamo_source", None)
    if source is not None:
        made._dynamo_source = reduce(AttrSource, path, source)
