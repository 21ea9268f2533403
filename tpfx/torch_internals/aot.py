"""AOTAutograd: its compile function, its partitioner, and which results it makes views of itself."""

from __future__ import annotations

from typing import Any

import torch._decomp as _decomp
from torch._functorch import aot_autograd as _aot
from torch._functorch import partitioners as _partitioners
from torch._guards import TracingContext

# For ops, the functions that AOTAutograd writes them as: `get_decompositions([aten.mse_loss])`.
get_decompositions: Any = _decomp.get_decompositions

# AOTAutograd's compile function; its protocol of compilers is narrower than what it takes.
aot_module_simplified: Any = _aot.aot_module_simplified

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
