"""Where a graph's arguments lie on each rank."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from tpfx.execution.arguments import Arguments
from tpfx.ir.annotations import Source, set_layout, set_source
from tpfx.ir.layout import Replicate
from tpfx.lowering import device_compiler
from tpfx.runtime.mesh import Mesh
from tpfx.torch_internals.fake import FakeTensorMode

GPUS = tuple(torch.device("cuda", at) for at in range(2))


def whole_input(value: torch.Tensor, mutated: bool = False) -> Node:
    """An input that every rank has."""
    node: Any = Graph().placeholder("x")
    node.meta["val"] = FakeTensorMode().from_tensor(value)
    set_source(node, Source("input", "x", mutated=mutated))
    set_layout(node, Replicate())
    return node  # type: ignore[no-any-return]


def test_what_a_graph_has_on_the_host_stays_there() -> None:
    """A count that a cache keeps beside its keys on GPUs: its ops in the graph are those of the host."""
    value = torch.tensor(3)
    for mutated in (False, True):
        node = whole_input(value, mutated)
        (column,) = Arguments([node], Mesh(GPUS)).columns([value])
        assert [(one.device.type, int(one)) for one in column] == [("cpu", 3)] * 2
        made = device_compiler._input(node, 1, GPUS[1])
        assert made.device.type == "cpu"
