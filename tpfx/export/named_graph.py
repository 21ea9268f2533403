"""A model's parallel graph as a `networkx.DiGraph` of plain names, numbers and words, to ask questions of.

graph = tpfx.graph(model)                                   # of a compiled model, the newest one
graph = tpfx.graph(model, 8, phase="decode")                # of any other: as it would be split
graph.nodes["layers.0.mlp.down_proj"]["layout"]             # "f32[s0, s1, 4096]+"
networkx.write_graphml(graph, "llama.graphml")
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import networkx
import torch

from ..api import report
from ..capture.capture import capture
from ..capture.graph import Phase
from ..capture.inputs import Inputs
from ..dump.node_text import Lines
from ..errors import InputError
from ..frontend.plain_copy import is_split
from ..ir.parallel_graph import ParallelGraph
from ..plan.critical_path import timed
from ..plan.make import capture_device, count_of
from ..plan.offline import plan_graphs
from ..plan.plan import Plan
from ..planning import Topology
from ..runtime.mesh import DeviceSpec


def graph(
    model: torch.nn.Module,
    devices: int | Sequence[DeviceSpec] | None = None,
    example_inputs: Inputs | None = None,
    *,
    phase: Phase = "prefill",
    topology: Topology | None = None,
) -> networkx.DiGraph:
    """The parallel graph of a model: its ops and collectives, and what flows between them.

    Args:
        model: a compiled model, of which the newest graph is given; or any other, which is planned for
            `devices` as `tpfx.plan` does it, without its weights, and left as it was.
        devices: how many, or a list with one for each rank; of a compiled model None.
        example_inputs: as `tpfx.plan` takes them; likewise `topology`.
        phase: of a model that is not compiled, the call: "prefill", "decode" or "train".

    Returns:
        A graph without circles. Its vertices are named as in `tpfx dump`; "results" takes what is returned.
        They have these attributes, all of them strings and numbers:

        op: as people call it, "linear"; "input", "constant" or "results" of what computes nothing.
        layout: the type as in a dump, "f32[s0, 4096/2]"; "" of what is no tensor.
        bytes: of the whole value.
        seconds: that its op takes on the slowest rank, or its collective, by the topology.
        module: the path of the module that it comes from.
        phase: "forward" or "backward".
        collective: "all_reduce", "all_gather" or "".

        Edges run from operands to users and have `bytes`, `seconds` (from the operand's start until the user
        has it), and `collective`: "gather" of what is gathered for the caller, or "".

    Raises:
        InputError: a plan, which has no edges; a compiled model with `devices`, another one without; a
            compiled model that no graph has been captured of.
        ModelError: the model cannot be captured.

    >>> networkx.descendants(tpfx.graph(model), "lm_head.weight")
    """
    if isinstance(model, Plan):
        raise InputError(
            f"a plan of {model.model} has no edges between its ops; pass the model: "
            f"tpfx.graph(model, {model.devices})"
        )
    if is_split(model):
        return named(_newest(model, devices), topology)
    if devices is None:
        raise InputError(
            f"{type(model).__name__} is not compiled: say for how many devices, tpfx.graph(model, 2)"
        )
    captured = capture(model, example_inputs, phase=phase, device=capture_device(None))
    return named(plan_graphs(captured, count_of(devices), topology)[-1], topology)


def _newest(model: torch.nn.Module, devices: Any) -> ParallelGraph:
    name = type(model).__name__
    if devices is not None:
        raise InputError(f"{name} is compiled already: leave out devices, or pass the model before it is")
    found = report(model).parallel
    if found is None:
        raise InputError(f"no graph of {name} has been captured yet: call the model once")
    return found


def named(parallel: ParallelGraph, topology: Topology | None = None) -> networkx.DiGraph:
    """The same of a parallel graph."""
    found = timed(parallel, topology or Topology())
    lines = Lines(list(parallel.graph.nodes))
    names = {node: "results" if node.op == "output" else lines.names[node] for node in found}
    for node, known in found.nodes(data=True):
        known["layout"] = "" if known["layout"] is None else lines.type_of(node)
    for *_, known in chain(found.nodes(data=True), found.edges(data=True)):
        known["collective"] = known["collective"] or ""
    return networkx.relabel_nodes(found, names)


def graphml(graph: networkx.DiGraph) -> str:
    """As GraphML, which yEd, Gephi and Cytoscape read."""
    return "\n".join(networkx.generate_graphml(graph))
