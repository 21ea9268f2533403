"""What `torch.compile(model, backend="tpfx")` calls: the same compiler by torch's own door.

    model = torch.compile(model, backend="tpfx", options={"devices": ["cuda:0", "cuda:1"]})

The first graph that captures a weight divides it: a ShardedTensor takes its place in the model.

Models that are compiled for the same devices share a session. It ends with the last of them: then Dynamo is
told to forget their graphs, and their threads end.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..errors import DeviceError, TpfxError
from ..sharded_tensor.even_storage import store_evenly
from ..sharded_tensor.model_weights import restore_weights, sharded_weight
from ..sharded_tensor.optimizers import adopt, succeed
from ..sharded_tensor.state_tensor import give_addresses
from ..torch_internals.dynamo_cache import forget_graphs, forget_sizes, guard_on_successors, sizes_now
from ..torch_internals.parameter_slots import Slot, slots_of
from .aot_compiler import compile_graph
from .effects import own_backend
from .session import Session, Target
from .weight_holders import HOLDERS

OPTIONS = tuple(field.name for field in fields(Target))

_sessions: weakref.WeakValueDictionary[Target, Session] = weakref.WeakValueDictionary()
_lock = threading.Lock()

# By session, the ids of the modules that hold its weights, and what knows the sizes of its graphs.
_modules: weakref.WeakKeyDictionary[Session, set[int]] = weakref.WeakKeyDictionary()
_sizes: weakref.WeakKeyDictionary[Session, list[Callable[[], Any]]] = weakref.WeakKeyDictionary()


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
    session = session_for(options or {})
    slots, model = _shard(module.graph.find_nodes(op="placeholder"), example_inputs, session)
    _sizes[session].append(sizes_now())
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
        hash(target)
    except TypeError as problem:
        raise DeviceError(
            f"devices={target.devices!r}: pass a list of devices, an int, or a DeviceMesh"
        ) from problem
    with _lock:
        found = _sessions.get(target)
        if found is None:
            found = _sessions[target] = Session.on(target.mesh(), target)
            _modules[found], _sizes[found] = set(), []
    return found


def session_of(model: torch.nn.Module) -> Session | None:
    """The session that has divided a model's weights, if one has."""
    meshes = {value.mesh for value in model.parameters() if hasattr(value, "mesh")}
    sessions = list(_sessions.values())
    like = (one for one in sessions for mesh in meshes if one.mesh.same_as(mesh))  # of a copy of its model
    return next((one for one in sessions if one.mesh in meshes), next(like, None))


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
        if type(value) in (torch.Tensor, torch.nn.Parameter) and _may_be_weight(node, value)
    }
    made: dict[int, Any] = {}
    slots, parts = [], dict[str, torch.nn.Module]()
    split = {id(value) for value in inputs if getattr(value, "qualified_name", None)}
    for module, table, key in HOLDERS.places(plain.keys() | split):
        _end_with(module, session)
        if id(table[key]) in split:
            continue
        value, name = plain[id(table[key])]
        if id(value) not in made:
            made[id(value)] = sharded_weight(value, name, session.mesh)
            succeed(value, made[id(value)])
        table[key] = made[id(value)]
        slots.append((Slot(table, key, name), value))
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
            value, name = slot.value, f"{prefix}.{slot.key}" if prefix else slot.key
            plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout is torch.strided
            if not plain or value.device != device or value.is_quantized:
                continue
            _end_with(module, session)
            if id(value) not in made:
                made[id(value)] = sharded_weight(value, name, session.mesh)
                succeed(value, made[id(value)])
            slot.table[slot.key] = made[id(value)]
            slots.append((Slot(slot.table, slot.key, name), value))
    return slots


def _may_be_weight(node: Node, value: torch.Tensor) -> bool:
    """Whether a module may hold an input: a parameter, or what Dynamo found among buffers."""
    source = getattr(node.meta.get("grapharg"), "source", None)
    return isinstance(value, torch.nn.Parameter) or "_buffers" in getattr(source, "name", "")


def _end_with(module: torch.nn.Module, session: Session) -> None:
    """Let a session end when the last of the modules that hold its weights has gone."""
    known = _modules[session]
    if id(module) not in known:
        known.add(id(module))
        module.register_state_dict_post_hook(give_addresses)
        weakref.finalize(module, _gone, id(module), session).atexit = False


def end_session(session: Session, modules: Sequence[torch.nn.Module]) -> None:
    """These modules' weights are plain again: a session of `backend="tpfx"` ends, if no others are its."""
    if session in _modules and _modules[session] <= {id(module) for module in modules}:
        for module in list(_modules[session]):
            _gone(module, session)


def _gone(module: int, ended: Session) -> None:
    """A module has gone. If it was the last one, only Dynamo keeps the session now, for its graphs."""
    known = _modules[ended]
    known.discard(module)
    if known:
        return
    targets = {target for target, one in _sessions.items() if one is ended}

    forget_graphs(lambda made_by, options: made_by is backend and _target_of(options) in targets)
    forget_sizes(_sizes[ended])
    _sizes[ended].clear()


def _target_of(options: Mapping[str, Any]) -> Target | None:
    """What options of `backend="tpfx"` ask for, if it can be had."""
    try:
        target = Target(**options)
        hash(target)
    except (TypeError, TpfxError):
        return None
    return target


def _name_of(node: Node) -> str:
    """The qualified name of a weight: what it is indexed by, from the model on."""
    source = getattr(node.meta.get("grapharg"), "source", None)
    keys = re.findall(r"\['([^']*)'\]", getattr(source, "name", "") or "")
    return ".".join(keys[1:]) or node.name
