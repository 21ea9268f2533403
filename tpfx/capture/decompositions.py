"""Ops that are written as simpler ones while a graph is traced, so that these may be split.

A loss over a vocabulary is a maximum, a sum and a lookup, each of which may be split along it; a mean over
elements divides by a number that a rank could not know. What is fast as one op and has a rule stays one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ..torch_internals.aot import get_decompositions
from .fast_paths import FAST_PATHS

aten = torch.ops.aten

_SIMPLER = [
    # losses
    aten._log_softmax,
    aten._log_softmax_backward_data,
    aten.nll_loss_forward,
    aten.nll_loss_backward,
    aten.nll_loss2d_forward,
    aten.nll_loss2d_backward,
    aten.mse_loss,
    aten.mse_loss_backward,
    aten.smooth_l1_loss,
    aten.smooth_l1_loss_backward,
    aten.huber_loss,
    aten.huber_loss_backward,
    aten.binary_cross_entropy,
    aten.binary_cross_entropy_backward,
    aten.soft_margin_loss,
    aten.soft_margin_loss_backward,
    # activations
    aten.elu_backward,
    aten.glu_backward,
    aten.hardsigmoid_backward,
    aten.hardswish_backward,
    aten.hardtanh_backward,
    aten.leaky_relu_backward,
    aten.log_sigmoid_forward,
    aten.log_sigmoid_backward,
    aten.softplus_backward,
    aten.silu_backward,
    aten._prelu_kernel_backward,
    # norms and views
    aten.native_group_norm_backward,
    aten.native_batch_norm_backward,
    aten.select_backward,
    aten.unfold_backward,
]


@cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """What AOTAutograd writes ops as: overload to function."""
    found: dict[Any, Callable[..., Any]] = get_decompositions(_SIMPLER)
    return {**found, **FAST_PATHS}
