"""AOTAutograd: its compile function, its partitioner, and which results it makes views of itself."""

from __future__ import annotations

from typing import Any

import torch
import torch._decomp as _decomp
from torch._functorch import aot_autograd as _aot
from torch._functorch import partitioners as _partitioners
from torch._guards import TracingContext
from torch._library import simple_registry
from torch.fx.node import _side_effectful_functions, has_side_effect

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
