"""What `torch.compile(model, backend="tpfx")` calls: the same compiler by torch's own door.

    model = torch.compile(model, backend="tpfx", options={"devices": ["cuda:0", "cuda:1"]})

The first graph that captures a weight divides it: a ShardedTensor takes its place in the model.

Models that are compiled for the same devices share a session. It ends with the last of them: then Dynamo is
told to forget their graphs, and their threads end.

Dynamo imports this module when it is first asked for the backend by its name. From then on it goes by what
tpfx changes in torch whenever it captures for it: the first code that it captures has no session yet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..capture.sources import on_leaves
from ..sharded_tensor.even_storage import store_evenly
from ..sharded_tensor.model_weights import restore_weights, sharded_weight
from ..sharded_tensor.optimizers import adopt, succeed
from ..torch_internals.dynamo import source_name
from ..torch_internals.dynamo_cache import guard_on_successors, in_place_for_captures
from ..torch_internals.parameter_slots import Slot, has_memory, slots_of
from .aot_compiler import compile_graph
from .effects import EFFECTS, is_own, own_backend
from .session import Session, end_with, note_sizes, session_for
from .weight_holders import HOLDERS


@own_backend
def backend(
    module: GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile one of Dynamo's graphs for several devices.

    Args:
        module: the graph.
        example_inputs: its inputs, the weights among them.
        options: what a `Target` is made of, as `tpfx.compile` takes it: `devices`, `topology`,
            `device_compiler`, `mode`, `timeout` and `group`.

    Raises:
        TpfxError: an option, or what it names, is unknown.
        DeviceError: the devices do not make a mesh.
    """
    return on_leaves(module, example_inputs, partial(_compile, session_for(options or {})))


def _compile(session: Session, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    slots, model = _shard(module.graph.find_nodes(op="placeholder"), example_inputs, session)
    note_sizes(session)
    made = {id(original): slot.value for slot, original in slots}
    guard_on_successors(made)
    inputs = [made.get(id(value), value) for value in example_inputs]
    try:
        compiled = compile_graph(session, module, inputs)
    except BaseException:
        restore_weights([slot for slot, _ in slots])
        raise
    if model is not None:
        store_evenly((slot.value for slot in slots_of(model)), session.mesh)
    return compiled


def _shard(
    placeholders: Sequence[Node], inputs: Sequence[Any], session: Session
) -> tuple[list[tuple[Slot, torch.Tensor]], torch.nn.Module | None]:
    """Put ShardedTensors in the place of those inputs that modules hold as parameters or buffers.

    Returns:
        Where they are and what was there, and the model whose weights they are, if it is known. What else
        that one has is split too.
    """
    plain = {
        id(value): (value, _name_of(node))
        for node, value in zip(placeholders, inputs, strict=True)
        if has_memory(value) and _may_be_weight(node, value)
    }
    made: dict[int, Any] = {}
    slots, parts = [], dict[str, torch.nn.Module]()
    split = {id(value) for value in inputs if getattr(value, "qualified_name", None)}
    for module, slot in HOLDERS.places(plain.keys() | split):
        end_with(module, session)
        if id(slot.value) in split:
            continue
        value, name = plain[id(slot.value)]
        if id(value) not in made:
            made[id(value)] = sharded_weight(value, name, session.mesh, slot.kind)
            if not slot.beside:
                succeed(value, made[id(value)])
        slot.table[slot.key] = made[id(value)]
        slots.append((replace(slot, name=name), value))
        parts.setdefault(name.rpartition(".")[0], module)
    model = HOLDERS.with_all(parts) if parts else None
    slots += [] if model is None else _shard_the_rest(model, made, session)
    for optimizer in HOLDERS.optimizers() if slots else ():
        adopt(optimizer)  # now, since Dynamo guards on the types of weights that something keeps alive
    return slots, model


def _shard_the_rest(
    model: torch.nn.Module, made: dict[int, Any], session: Session
) -> list[tuple[Slot, torch.Tensor]]:
    """Put ShardedTensors in the place of the weights that no graph has reached, if they lie on its device."""
    slots, device = [], session.mesh.devices[session.mesh.owned[0]]
    for prefix, module in model.named_modules():
        for slot in slots_of(module, recurse=False):
            value, name = slot.value, f"{prefix}.{slot.name}" if prefix else slot.name
            plain = has_memory(value) and value.layout is torch.strided
            if not plain or value.device != device or value.is_quantized:
                continue
            end_with(module, session)
            if id(value) not in made:
                made[id(value)] = sharded_weight(value, name, session.mesh, slot.kind)
                if not slot.beside:
                    succeed(value, made[id(value)])
            slot.table[slot.key] = made[id(value)]
            slots.append((replace(slot, name=name), value))
    return slots


def _may_be_weight(node: Node, value: torch.Tensor) -> bool:
    """Whether a module may hold an input, or what that is inside of: a parameter, or a buffer to Dynamo."""
    name = source_name(node)
    return isinstance(value, torch.nn.Parameter) or "_buffers[" in name or "_parameters[" in name


def _name_of(node: Node) -> str:
    """The qualified name of a weight: what it is indexed by, from the model on."""
    path, _, inside = source_name(node).rpartition("']")
    keys = re.findall(r"\['([^']*)'\]", f"{path}']")
    return ".".join(keys[1:]) + inside or node.name


in_place_for_captures(is_own, EFFECTS.held).install()
