"""What `torch.compile(model, backend="tpfx")` calls: the same compiler by torch's own door.

    model = torch.compile(model, backend="tpfx", options={"devices": ["cuda:0", "cuda:1"]})

The first graph that captures a weight divides it: a ShardedTensor takes its place in the model.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..errors import DeviceError, TpfxError
from ..runtime.mesh import Mesh
from ..sharded_tensor.model_weights import restore_weights, sharded_weight
from ..sharded_tensor.optimizers import adopt, succeed
from ..torch_internals.parameter_slots import Slot
from .aot_compiler import compile_graph
from .options import Target
from .session import Session

OPTIONS = tuple(field.name for field in fields(Target))

_sessions: dict[Target, Session] = {}


def backend(
    module: GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile one of Dynamo's graphs for several devices.

    Args:
        module: the graph.
        example_inputs: its inputs, the weights among them.
        options: what a `Target` is made of, as `tpfx.compile` takes it: `devices`, `topology`,
            `device_compiler`, `timeout` and `group`.

    Raises:
        TpfxError: an option, or what it names, is unknown.
        DeviceError: the devices do not make a mesh.
    """
    session = session_for(options or {})
    placeholders = module.graph.find_nodes(op="placeholder")
    slots = _shard(placeholders, example_inputs, session.mesh)
    made = {id(original): slot.value for slot, original in slots}
    inputs = [made.get(id(value), value) for value in example_inputs]
    try:
        return compile_graph(session, module, inputs)
    except BaseException:
        restore_weights([slot for slot, _ in slots])
        raise


def session_for(options: Mapping[str, Any]) -> Session:
    """What all graphs that are compiled for the same devices share.

    Raises:
        TpfxError: an option, or what it names, is unknown.
    """
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise TpfxError(
            f"options={{{unknown[0]!r}: …}} is unknown to backend='tpfx'; it takes {', '.join(OPTIONS)}"
        )
    target = Target(**options)
    try:
        found = _sessions.get(target)
    except TypeError as problem:
        raise DeviceError(
            f"devices={target.devices!r}: pass a list of devices, an int, or a DeviceMesh"
        ) from problem
    if found is None:
        found = _sessions[target] = Session.on(target.mesh(), target)
    return found


def session_of(model: torch.nn.Module) -> Session | None:
    """The session that has divided a model's weights, if one has."""
    meshes = {value.mesh for value in model.parameters() if hasattr(value, "mesh")}
    return next((session for session in _sessions.values() if session.mesh in meshes), None)


def _shard(
    placeholders: Sequence[Node], inputs: Sequence[Any], mesh: Mesh
) -> list[tuple[Slot, torch.Tensor]]:
    """Put ShardedTensors in the place of those inputs that modules hold as parameters or buffers."""
    plain = {
        id(value): (value, _name_of(node))
        for node, value in zip(placeholders, inputs, strict=True)
        if type(value) in (torch.Tensor, torch.nn.Parameter)
    }
    made: dict[int, Any] = {}
    slots = []
    for module in [one for one in gc.get_objects() if issubclass(type(one), torch.nn.Module)]:
        for table in (vars(module).get("_parameters", {}), vars(module).get("_buffers", {})):
            for key, value in list(table.items()):
                if id(value) not in plain:
                    continue
                if id(value) not in made:
                    made[id(value)] = sharded_weight(value, plain[id(value)][1], mesh)
                    succeed(value, made[id(value)])
                table[key] = made[id(value)]
                slots.append((Slot(table, key, plain[id(value)][1]), value))
    for optimizer in [one for one in gc.get_objects() if issubclass(type(one), torch.optim.Optimizer)]:
        adopt(optimizer)  # now, since Dynamo guards on the types of weights that something keeps alive
    return slots


def _name_of(node: Node) -> str:
    """The qualified name of a weight: what it is indexed by, from the model on."""
    source = getattr(node.meta.get("grapharg"), "source", None)
    keys = re.findall(r"\['([^']*)'\]", getattr(source, "name", "") or "")
    return ".".join(keys[1:]) or node.name
