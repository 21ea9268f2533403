"""AOTAutograd: its compile function, its partitioner, which results it makes views of itself, and the node of
autograd's graph that stands for one of its graphs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch._decomp as _decomp
import torch._prims as _prims
import torch.utils.checkpoint as _checkpoint
from torch._decomp import decompositions as _decompositions
from torch._functorch import aot_autograd as _aot
from torch._functorch import partitioners as _partitioners
from torch._guards import TracingContext, tracing
from torch._library import simple_registry
from torch.autograd import forward_ad
from torch.autograd.graph import Node
from torch.fx.node import _side_effectful_functions, has_side_effect

from .effects import replace_in
from .fake import FakeTensorMode
from .fx import OpOverload

# The functions that write ops as others, for AOTAutograd, by overload. Some are torch's references, which are
# made of prims, each of which is an op of ATen.
_PRIMS = {getattr(torch.ops.prims, name) for name in _prims.__all__ if hasattr(torch.ops.prims, name)}
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    **_decomp.decomposition_table,
    **{prim.default: prim.impl_aten for prim in _PRIMS},
}

# Raises where a matrix was singular, say. In torch 2.13 AOTAutograd orders it among ops with side effects:
# a graph has a token for that as another input and result.
_CHECK = torch.ops.aten._linalg_check_errors.default


def is_composite(op: OpOverload) -> bool:
    """Whether an op is traced as those that it consists of anyway."""
    return bool(op._can_decompose())


def aot_module_simplified(*args: Any, **kwargs: Any) -> Any:
    """AOTAutograd's compile function; checks of matrices stay in a graph, as ops without tokens."""
    effect = simple_registry.singleton.find(_CHECK._name).effect
    before, known = effect.effect, _CHECK in _side_effectful_functions
    effect.register(None)
    has_side_effect(_CHECK)
    try:
        return _aot.aot_module_simplified(*args, **kwargs)
    finally:
        effect.register(before)
        if not known:
            _side_effectful_functions.discard(_CHECK)


# Parts a joint graph in forward and backward, saving the least memory between them.
min_cut_rematerialization_partition: Any = _partitioners.min_cut_rematerialization_partition


def aliased_outputs() -> frozenset[int]:
    """Which results of the forward graph that AOTAutograd now has compiled stand for views of an input, or of
    another result: it makes the view itself, with their sizes, strides and offset."""
    context = TracingContext.try_get()
    known = None if context is None else context.fw_metadata
    if known is None:
        return frozenset()
    first = known.num_mutated_inp_runtime_indices
    views = {
        first + at
        for at, info in enumerate(known.output_info)
        if info.output_type.name.startswith("alias_of")
    }
    bases = first + len(known.output_info)
    return frozenset(views | set(range(bases, bases + known.num_intermediate_bases)))


# Whether a mode of a checkpoint takes ops that call graphs.
_TAKES_OPS = "supports_higher_order_operators"


@contextmanager
def drawing_as_eager(effectful: Collection[Any]) -> Iterator[None]:
    """While this lasts, graphs are made that draw the random numbers that eager code does.

    What draws stays where nothing uses it; what is drawn again in the backward pass, is so from a state that
    the forward pass returns; and recurrent nets drop what they should between their layers (torch's own
    decomposition asks for `num_layers < i - 1`, which no layer is).

    Args:
        effectful: ops that stay too where nothing uses their results.
    """
    added = set(effectful) - _side_effectful_functions
    modes = (_checkpoint._CachingTorchDispatchMode, _checkpoint._CachedTorchDispatchMode)
    with ExitStack() as undo:
        undo.callback(replace_in(vars(_decompositions), "_rnn_helper", _with_dropout))
        _side_effectful_functions.update(added)
        undo.callback(_side_effectful_functions.difference_update, added)
        for mode in modes:
            undo.callback(setattr, mode, _TAKES_OPS, getattr(mode, _TAKES_OPS))
            setattr(mode, _TAKES_OPS, True)
        undo.enter_context(torch._inductor.config.patch(fallback_random=True))
        yield


def keeping_repetitions() -> AbstractContextManager[Any]:
    """The partitioner takes no two equal calls for one: they may draw, of ops of which it knows nothing."""
    return torch._functorch.config.patch(cse=False)  # type: ignore[no-any-return]


def _with_dropout(unroll: Callable[..., Any]) -> Callable[..., Any]:
    """A recurrent net layer by layer, and dropout between two."""

    def run(
        x: Any,
        hidden: Any,
        params: Any,
        biases: Any,
        layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
        layer: Any,
    ) -> Any:
        if not (train and dropout):
            return unroll(
                x, hidden, params, biases, layers, dropout, train, bidirectional, batch_first, layer
            )
        ways, last = 1 + bidirectional, []
        x = x.transpose(0, 1) if batch_first else x
        for at in range(0, layers * ways, ways):
            own = (hidden[at : at + ways], params[at : at + ways])
            x, states = unroll(x, *own, biases, 1, 0.0, train, bidirectional, False, layer)
            last += states
            x = torch.dropout(x, dropout, True) if at + ways < layers * ways else x
        return (x.transpose(0, 1) if batch_first else x), last

    return run


# What AOTAutograd notes of a graph: its inputs that change, its results, how it stands to autograd.
Notes = Any


def notes_now() -> Notes | None:
    """The notes on the graph whose forward part is compiled now."""
    context = TracingContext.try_get()
    return None if context is None else context.fw_metadata


def keep_saved(notes: Notes) -> None:
    """Say that a backward part overwrites nothing that is saved for it: so it may run more than once."""
    notes.bw_donated_idxs = []


def tracing_alone(mode: FakeTensorMode) -> AbstractContextManager[Any]:
    """For a graph that is lowered outside of Dynamo: notes on it have a place of their own."""
    return tracing(TracingContext(mode))


def node_of_graph(results: Sequence[Any], notes: Notes) -> Node | None:
    """The node that has run a graph, by the results of the call: their own, or behind views of them."""
    for result in results:
        node = result.grad_fn if isinstance(result, torch.Tensor) else None
        while node is not None:
            function = getattr(type(node), "_forward_cls", None)
            if getattr(function, "metadata", None) is notes:
                return node
            node = next((before for before, _ in node.next_functions), None) if function is None else None
    return None


def written_inputs(notes: Notes) -> frozenset[int]:
    """The positions of the inputs that a graph writes into."""
    return frozenset(at for at, info in enumerate(notes.input_info) if info.mutates_data)


@dataclass(frozen=True)
class Tangent:
    """A gradient that a backward part takes.

    Attributes:
        position: of the result in autograd's node.
        result: which result of the traced function has this gradient; None: an input that it writes into.
        of_base: whether it is that of the tensor which the result is a view of.
    """

    position: int
    result: int | None
    of_base: bool = False


def tangents_of(notes: Notes) -> list[Tangent]:
    """The gradients that the backward part of a graph takes, in its order."""
    written = [notes.input_info[at] for at in notes.mutated_inp_runtime_indices]
    found = [Tangent(at, None) for at, info in enumerate(written) if info.mutates_data and info.requires_grad]
    first, bases = len(written), len(written) + len(notes.output_info)
    found += [Tangent(first + at, at) for at, info in enumerate(notes.output_info) if _has_gradient(info)]
    viewing = {info.base_idx: at for at, info in enumerate(notes.output_info) if _views_a_base(info)}
    found += [Tangent(bases + base, viewing[base], True) for base in range(notes.num_intermediate_bases)]
    return found


def _has_gradient(info: Any) -> bool:
    """Whether a result is made by the graph itself, and gradients flow back to it."""
    own = info.output_type.name in ("non_alias", "unsafe_view_alias", "custom_function_view")
    flows = getattr(info, "requires_grad_for_backward", info.requires_grad)  # new in torch 2.13
    return bool(own and issubclass(info.raw_type, torch.Tensor) and flows)


def _views_a_base(info: Any) -> bool:
    return info.output_type.name in ("alias_of_intermediate_save_as_output", "alias_of_intermediate")


def in_transform() -> bool:
    """Whether torch.func transforms what is called now (`grad`, `vmap`), or it is derived in forward mode."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def in_batches() -> bool:
    """Whether gradients are computed in batches: `is_grads_batched`, `vectorize`."""
    level: int = torch._C._vmapmode_increment_nesting()
    torch._C._vmapmode_decrement_nesting()
    return level > 1
