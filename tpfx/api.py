"""`compile`, `load`, `report` and `unshard`: what most users need."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from .capture.inputs import Inputs
from .checkpoint.gguf_files import checkpoint_at, packed_in_place
from .checkpoint.safetensors_files import Stored, reading, weights_in
from .console import display as _display  # noqa: F401  (it begins to show progress)
from .errors import AlreadyCompiledError, InputError, ModelError
from .frontend.compiled_forward import Entry
from .frontend.methods import lead_through, method_names
from .frontend.plain_copy import is_split, stand_ins, strip
from .frontend.report import Report
from .frontend.session import Session, Target, end_session, session_of
from .frontend.weight_holders import HOLDERS
from .plan.generation import first_of_generate
from .plan.plan import Plan
from .planning import Topology
from .runtime.data_parallel import stop_averaging
from .runtime.mesh import DeviceSpec
from .sharded_tensor.model_weights import (
    check_weights,
    read_weights,
    restore_weights,
    shard_weights,
    unshard_weights,
)
from .sharded_tensor.optimizers import release
from .torch_internals.parameter_slots import Slot, slots_of

log = logging.getLogger("tpfx")

M = TypeVar("M", bound=torch.nn.Module)


def compile(
    model: M,
    devices: int | Sequence[DeviceSpec] | DeviceMesh | None = None,
    *,
    example_inputs: Inputs | None = None,
    plan: Plan | str | Path | None = None,
    topology: Topology | None = None,
    methods: Sequence[str] | None = None,
    device_compiler: str = "native",
    mode: str = "default",
    processes: bool = False,
    timeout: float = 300.0,
    group: ProcessGroup | None = None,
) -> M:
    """Split a model over several devices, in place.

    Its parameters and buffers become `ShardedTensor`s; an optimizer that has the old ones takes over the new
    ones at its next step. Those that no call has used yet are divided evenly, as storage, once the others are
    divided: the first call that uses them decides. If anything fails, the model is left as it was.

    Args:
        model: any module with parameters. It is changed in place, and returned.
        devices: one device for each rank, repeats allowed; an int for so many; a DeviceMesh of processes, of
            one dimension or with one called "tp" (over the other, gradients are averaged); None, or "auto",
            for the processes that torchrun started, one rank each, or else all visible GPUs.
        example_inputs: arguments (a tuple) or keyword arguments (a dict) of one call.
            With them the weights are divided at once; a transformers model brings its own; otherwise at the
            first call.
        plan: what `tpfx.plan` or `tpfx plan` made, or the file that it is in: the weights are divided as it
            says, and a graph that it has is carried out as it says. For any other graph, such as that of
            another kind of device, the cheapest way with these weights is chosen.
        topology: what collectives and arithmetic cost, for the chooser; the plan's where there is one.
        methods: the names of the methods that are compiled at their first call, beside `forward`; None for
            all that run submodules, such as `encode` or `get_text_features`, and [] for none.
        device_compiler: what runs the graph of each device: "native", tpfx's executor, op by op from C++;
            "inductor", TorchInductor's code, which takes a minute to make and is faster then; or "eager", op
            by op from Python, for debugging.
        mode: "reduce-overhead" has calls without gradients recorded as CUDA graphs, where a process has one
            GPU, as under torchrun: a call with the sizes of one before, and with its caches where they were
            (a static cache), is launched as one. `tpfx.report` says what is not recorded, and why.
        processes: whether a process is started for each rank after the first, so that ranks do not share
            Python's lock; the model is used as before, in this process. CPU devices on Linux, so far. The
            processes end with the model, or with this process.
        timeout: seconds that a rank waits for the others before `CollectiveTimeout`, or that of a process
            group that is made here.
        group: processes that each have `devices` of their own, or one device; the model is split over all of
            them. Every process passes its inputs on its first device.

    Returns:
        The same model. Its inputs are brought to the first device; its outputs are plain tensors there.

    Raises:
        DeviceError: the devices do not make a mesh.
        AlreadyCompiledError: the model has been compiled before.
        ModelError: the model is no module, or has no parameters, or some that cannot be divided.
        InputError: the example inputs are no tuple and no dict, or no op of the model can take them; or the
            model has no such method.
        TpfxError: the device compiler, or the mode, is unknown, or does not go with `processes`.
        WorkerError: a process cannot be started, or has ended.
        PlanError: the plan cannot be read, or is for another model, number of devices or version of tpfx.
        Exception: what the model's forward raises with the example inputs.

    >>> model = tpfx.compile(model, ["cuda:0", "cuda:1"])
    """
    target = Target(devices, topology, device_compiler, timeout, group, mode, processes)
    return _compile(model, example_inputs, plan, target, methods, {})


def load(
    model: M,
    checkpoint: str | Path,
    devices: int | Sequence[DeviceSpec] | DeviceMesh | None = None,
    *,
    example_inputs: Inputs | None = None,
    plan: Plan | str | Path | None = None,
    topology: Topology | None = None,
    methods: Sequence[str] | None = None,
    device_compiler: str = "native",
    mode: str = "default",
    processes: bool = False,
    timeout: float = 300.0,
    group: ProcessGroup | None = None,
    dequantize: bool = False,
    progress: bool | None = None,
) -> M:
    """Split a model without contents over several devices, and read its weights from files.

    It is planned first; then each rank reads only its own slices, so that neither the host nor a device ever
    holds the whole. If anything fails, the model is left as it was.

    Args:
        model: with parameters on the meta device, as `accelerate.init_empty_weights()` makes it. Those that
            have contents keep them.
        checkpoint: a safetensors file, an index of several, or a folder with one or the other, as
            transformers and diffusers write them; of a pipeline, the folder of the one model. Or a GGUF file,
            as llama.cpp writes it, which the package gguf reads.
        devices: as `compile` takes them; likewise `plan`, `topology`, `methods`, `device_compiler`, `mode`,
            `processes`, `timeout` and `group`.
        example_inputs: as `compile` takes them; needed unless the model brings its own.
        dequantize: whether what a GGUF file has packed becomes plain weights as it is read, of the model's
            dtype; otherwise it stays packed, frozen, and each use of a weight unpacks it.
        progress: whether a line on stderr shows the bytes read; None for a terminal or a notebook, after two
            seconds.

    Returns:
        The same model, as `compile` returns it.

    Raises:
        ModelError: the files lack weights, or have them in other shapes, or are of another kind; or the
            package gguf is not installed.
        InputError: there is no example to plan with.
        Exception: as `compile`.

    >>> model = tpfx.load(model, "Llama-3.1-8B", ["cuda:0", "cuda:1"])
    """
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"tpfx.load takes an nn.Module, got {type(model).__name__}")
    if hasattr(model, "tie_weights"):  # of transformers; made without contents, it may have lost its ties
        model.tie_weights()  # type: ignore[operator]
    with reading(progress) as progressed:
        stored = weights_in(model, checkpoint_at(checkpoint, model, progressed.tell))
        target = Target(devices, topology, device_compiler, timeout, group, mode, processes)
        with nullcontext(stored) if dequantize else packed_in_place(model, stored) as found:
            return _compile(model, example_inputs, plan, target, methods, found, progressed.expect)


def _compile(
    model: M,
    example_inputs: Inputs | None,
    plan: Plan | str | Path | None,
    target: Target,
    methods: Sequence[str] | None,
    stored: Mapping[int, Stored],
    expect: Callable[[int], None] = lambda size: None,
) -> M:
    _check(model, example_inputs, stored)
    names = method_names(model, methods)
    made = Plan.load(plan) if isinstance(plan, (str, Path)) else plan
    mesh = target.mesh()
    if made is not None:
        made.require(model, mesh.size)
        target = replace(target, topology=target.topology or made.topology)
    session = Session.on(mesh, target)
    slots = shard_weights(model, mesh, stored)
    try:
        if made is not None:
            _follow(made, slots, session)
        entry = Entry(model, model.forward, session)
        _plan(entry, example_inputs)
        if session.newest is not None:
            entry.store_the_rest()
        if stored:
            _require_a_plan(model, session)
            read_weights(slots, mesh, expect)
    except BaseException:
        for module in model.modules():
            strip(module)
        stop_averaging(model)
        restore_weights(slots)
        session.close()
        raise
    _install(model, entry)
    lead_through(model, names)
    return model


def _follow(plan: Plan, slots: Sequence[Slot], session: Session) -> None:
    """Divide the weights as a plan says, and have its graphs carried out as it says."""
    session.plan = plan
    for slot in slots:
        weight = plan.weights.get(slot.name)
        if weight is not None and weight.shards is not None and slot.value.placement is None:
            slot.value.distribute(weight.shards)


def report(model: torch.nn.Module) -> Report:
    """What was done to a compiled model: bytes on each device, collectives, graphs, ops that run whole.

    Raises:
        ModelError: the model is not compiled.
    """
    entry = _entry(model)
    session = session_of(model) if entry is None else entry.session
    if session is None:
        raise ModelError("this model is not compiled; call tpfx.compile(model, devices) first")
    return Report.of(model, session)


def unshard(model: M, device: torch.device | str | None = None) -> M:
    """Make a compiled model plain again, in place: as before `compile`, with its weights as they are now.

    Parameters and buffers become whole, plain tensors, tied ones stay tied; gradients, and what optimizers
    remember of each element, follow. An optimizer that has the split weights goes on with the plain ones. The
    model's methods are its own again; its parts that were compiled by themselves are made plain too. Threads
    end, and groups that tpfx has made are closed. Of processes, every one calls it, and has the whole model
    then. If weights cannot be gathered, the model is left as it was.

    Args:
        model: what `compile` returned, or a model that has such parts, or what
            `torch.compile(model, backend="tpfx")` returned.
        device: where the weights shall be, "cpu" for a model larger than a device; None for the first one.

    Returns:
        The same model; of what `torch.compile` returned, the model inside.

    Raises:
        ModelError: nothing of the model is compiled, or the model is a part of a compiled one.

    >>> torch.export.export(tpfx.unshard(model), (x,))
    """
    if not is_split(model):
        raise ModelError(f"{type(model).__name__} is not compiled: there is nothing to make whole")
    modules = list(model.modules())
    found = [one for module in modules for _, one in stand_ins(module)]
    for one in found:
        if not any(one.model is module for module in modules):
            raise ModelError(
                f"this {type(model).__name__} is a part of a compiled {type(one.model).__name__}; call "
                "tpfx.unshard on that"
            )
    session = session_of(model)
    stop_averaging(model)
    unshard_weights(list(slots_of(model)), device)
    for module in modules:
        strip(module)
    HOLDERS.search()
    for optimizer in HOLDERS.optimizers():
        release(optimizer)
    for one in found:
        if isinstance(one, Entry):
            one.close()
    if session is not None:
        end_session(session, modules)
    inner: M = getattr(model, "_orig_mod", model)
    return inner


def _entry(model: torch.nn.Module) -> Entry | None:
    return vars(model).get("_tpfx_entry")  # others may have wrapped `forward` since


def _install(model: torch.nn.Module, entry: Entry) -> None:
    """Lead what concerns all weights at once through the entry."""
    model.forward = model._tpfx_entry = entry  # type: ignore[assignment]
    if "extra_repr" not in vars(model):
        model.extra_repr = partial(entry.extra_repr)  # type: ignore[method-assign]
    entry.prepare_modules()


def _require_a_plan(model: torch.nn.Module, session: Session) -> None:
    if session.newest is None:
        raise InputError(
            f"{type(model).__name__} cannot be planned before it is read, since it brings no inputs of its "
            "own that it runs with; pass example_inputs"
        )


def _check(model: Any, example_inputs: Any, stored: Collection[int]) -> None:
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"tpfx.compile takes an nn.Module, got {type(model).__name__}")
    entry = _entry(model)
    if entry is not None:
        names = [str(device) for device in entry.session.mesh.devices]
        raise AlreadyCompiledError(
            f"this model is compiled already, for {names}; load it anew to split it otherwise"
        )
    check_weights(model, stored)
    if example_inputs is not None and not isinstance(example_inputs, (tuple, list, Mapping)):
        raise InputError(
            f"example_inputs is a {type(example_inputs).__name__}; pass a tuple of arguments, such as (x,), "
            "or a dict of keyword arguments"
        )


def _plan(entry: Entry, example_inputs: Inputs | None) -> None:
    """Divide the weights now, if there is an example to go by."""
    if example_inputs is not None:
        entry.plan(example_inputs)
        return
    own = _own_inputs(entry.model, entry.session.mesh.devices[entry.session.mesh.owned[0]])
    if own is None:
        return
    first = None if entry.model.training else first_of_generate(entry.model, own)
    for given, keep in ((first, True), (own, False)):
        try:
            if given is not None and entry.session.newest is None:
                entry.plan(given, keep)
        except Exception as problem:  # the user asked for nothing here: the first call decides, and reports
            name = type(entry.model).__name__
            log.info(
                "%s cannot run its own dummy inputs (%s); it is planned at the first call", name, problem
            )


def _own_inputs(model: torch.nn.Module, device: torch.device) -> dict[str, Any] | None:
    """The inputs that a transformers model has of its own."""
    inputs = getattr(model, "dummy_inputs", None) if hasattr(model, "config") else None
    if not isinstance(inputs, dict):
        return None
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
    }
