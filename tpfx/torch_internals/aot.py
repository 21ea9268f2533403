"""AOTAutograd: its compile function, its partitioner, and which results it makes views of itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch._decomp as _decomp
import torch.utils.checkpoint as _checkpoint
from torch._decomp import decompositions as _decompositions
from torch._functorch import aot_autograd as _aot
from torch._functorch import partitioners as _partitioners
from torch._guards import TracingContext
from torch._library import simple_registry
from torch.fx.node import _side_effectful_functions, has_side_effect

from .effects import replace_in

# For ops, the functions that AOTAutograd writes them as: `get_decompositions([aten.mse_loss])`.
get_decompositions: Any = _decomp.get_decompositions

# Raises where a matrix was singular, say. In torch 2.13 AOTAutograd orders it among ops with side effects:
# a graph has a token for that as another input and result.
_CHECK = torch.ops.aten._linalg_check_errors.default


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
