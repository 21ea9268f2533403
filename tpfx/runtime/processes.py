"""Several processes, as torchrun starts them: the mesh of a torch.distributed group, and what its processes
must have in common.

    torchrun --nproc-per-node 2 script.py       # in it: tpfx.compile(model)

The graphs are those of rank threads; their functional collectives run on the process group. All processes run
the same program on the same inputs, and every one gets the whole outputs.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ..errors import CollectiveError, DeviceError
from ..torch_internals.distributed import outside_traces
from .mesh import Mesh, is_automatic, parse_devices
from .shared_memory import MOST_RANKS, known_meeting
from .watch import waiting, watch


def launched() -> bool:
    """Whether this process is one of several that torchrun started, or has joined others by itself."""
    return dist.is_available() and (dist.is_initialized() or dist.is_torchelastic_launched())


def mesh_from(
    devices: Any, timeout: float, group: dist.ProcessGroup | None = None, apart: bool = False
) -> Mesh:
    """The ranks that a user asks for, of this process or of several; those of a `group` have devices each.

    `apart`: those after the first are processes that this one starts.
    """
    if apart:
        return _mesh_apart(devices, group)
    if group is not None:
        return _mesh_of_shares(devices, group)
    if isinstance(devices, DeviceMesh):
        return mesh_of(devices)
    return world_mesh(timeout) if is_automatic(devices) and launched() else Mesh(parse_devices(devices))


def _mesh_apart(devices: Any, group: dist.ProcessGroup | None) -> Mesh:
    """Ranks of which all but the first are processes to be started."""
    if group is not None or isinstance(devices, DeviceMesh) or launched():
        raise DeviceError(
            "processes=True starts the processes of the ranks, but there are some already, of torchrun or of "
            "a group: leave out one or the other"
        )
    found = parse_devices(devices)
    if len(found) == 1:
        return Mesh(found)
    if found[0].type != "cpu" or sys.platform != "linux" or len(found) > MOST_RANKS:
        raise DeviceError(
            f"processes=True is for 2 to {MOST_RANKS} CPU devices on Linux so far, not for {len(found)} of "
            f"kind {found[0].type!r} on {sys.platform}: leave it out, and the ranks are threads, or start "
            "one process per device with torchrun"
        )
    return Mesh(found, apart=True)


def world_mesh(timeout: float) -> Mesh:
    """The mesh of all processes, one rank each; joins them if that has not been done.

    Args:
        timeout: seconds after which a collective gives up, where the group is made here.
    """
    if not dist.is_initialized():
        device = _own_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout)
        )
    assert dist.group.WORLD is not None
    return _mesh(dist.group.WORLD, (_own_device(),), None)


def mesh_of(given: DeviceMesh) -> Mesh:
    """The mesh of a DeviceMesh of one dimension, or of the dimension "tp" of one of two.

    Over the other dimension of two, gradients are averaged: each of its ranks has a shard of the batch.

    Raises:
        DeviceError: it has more dimensions, or none of two is called "tp".
    """
    names = given.mesh_dim_names or ()
    if given.ndim == 1:
        return _mesh(given.get_group(), (_own_device(given.device_type),), None)
    if given.ndim != 2 or "tp" not in names:
        raise DeviceError(
            f"a DeviceMesh of {given.ndim} dimensions named {names or 'nothing'}; pass one of one dimension, "
            'or of two of which one is called "tp", such as init_device_mesh("cuda", (2, 4), '
            'mesh_dim_names=("dp", "tp"))'
        )
    other = next(name for name in names if name != "tp")
    return _mesh(given.get_group("tp"), (_own_device(given.device_type),), given.get_group(other))


def _mesh_of_shares(devices: Any, group: dist.ProcessGroup) -> Mesh:
    """Every process of a group owns a rank on each of the devices that it names."""
    if isinstance(devices, DeviceMesh):
        raise DeviceError("devices is a DeviceMesh, which has groups of its own: leave group out")
    own = (_own_device(),) if is_automatic(devices) else parse_devices(devices)
    return _mesh(group, own, None)


def _own_device(kind: str | None = None) -> torch.device:
    """The GPU of this process's local rank, or the CPU where there is none."""
    if (kind or "cuda") == "cuda" and torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))
        return torch.device("cuda", local % torch.cuda.device_count())
    return torch.device("cpu")


def _mesh(group: dist.ProcessGroup, own: Sequence[torch.device], replicas: dist.ProcessGroup | None) -> Mesh:
    size, process = dist.get_world_size(group), dist.get_rank(group)
    if process < 0:
        raise DeviceError(
            f"process {dist.get_rank()} is not in the group that the model is split over; let the processes "
            "of the group alone call tpfx"
        )
    named: list[Any] = [None] * size
    dist.all_gather_object(named, [str(device) for device in own], group)
    devices = tuple(torch.device(name) for names in named for name in names)
    if len({device.type for device in devices}) > 1:
        kinds = sorted({str(device) for device in devices})
        raise DeviceError(
            f"the processes of a group must have devices of one kind, not {kinds}: only GPUs or only CPUs"
        )
    shares = tuple(len(names) for names in named)
    first = sum(shares[:process])
    names = (group.group_name,) * size if set(shares) == {1} else ()
    owned = tuple(range(first, first + shares[process]))
    mesh = Mesh(devices, owned, names, group, shares, replicas)
    _share_random_state(mesh)
    _await_threads_at_exit()
    watch(group)
    return mesh


@functools.cache
def _await_threads_at_exit() -> None:
    """Let Gloo's threads drop the tensors of the last collectives before Python ends.

    They take Python's lock for it; one that gets it while Python ends aborts the process.
    """
    atexit.register(time.sleep, 0.1)


def _share_random_state(mesh: Mesh) -> None:
    """Every process draws the numbers of the first from here on, whatever it has been seeded with."""
    states: list[Any] = [torch.get_rng_state()]
    gpu = mesh.devices[mesh.owned[0]].type == "cuda"
    if gpu:
        states.append(torch.cuda.get_rng_state())
    dist.broadcast_object_list(states, group=mesh.group, group_src=0)
    torch.set_rng_state(states[0])
    if gpu:
        torch.cuda.set_rng_state(states[1])


def from_each(mesh: Mesh, own: Any, doing: str) -> list[Any]:
    """What each process of a group has, in order; `own` is this one's. All must call it.

    Args:
        mesh: of a group.
        own: what can be pickled.
        doing: for what, to be said where that fails or takes long.
    """
    found: list[Any] = [None] * len(mesh.shares)
    try:
        with outside_traces(), waiting(doing):
            dist.all_gather_object(found, own, mesh.group)
    except Exception as error:
        rank = mesh.owned[0]
        error.add_note(f"on rank {rank} ({mesh.devices[rank]}), {doing}")
        raise
    return found


def require_same(mesh: Mesh, what: str, parts: Iterable[bytes]) -> None:
    """Stop all ranks where something differs between processes that must be the same; free in one process.

    Raises:
        CollectiveError: on every rank.
    """
    if mesh.group is None:
        return
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    digests = from_each(mesh, digest.hexdigest(), f"comparing {what} with those of the other ranks")
    others = [mesh.firsts[at] for at, found in enumerate(digests) if found != digests[0]]
    if others:
        raise CollectiveError(
            f"{what} of rank(s) {', '.join(map(str, others))} differ from those of rank 0: all processes "
            "that a model is split over must run the same program on the same inputs"
        )


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _all_gather(own: torch.Tensor, mesh: Mesh) -> Any:
    """The rows of all processes. Between two graphs Dynamo would capture torch.distributed's own function."""
    meeting = known_meeting(mesh)
    if meeting is not None:
        return meeting.gather(own)
    found = own.new_empty((len(mesh.shares) * len(own), *own.shape[1:]))
    dist.all_gather_into_tensor(found, own, mesh.group)
    return found


def from_all(rows: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    """A row of each rank, from those of the ranks that this process owns."""
    if mesh.group is None:
        return rows
    most = max(mesh.shares)
    padded = (
        torch.cat((rows, rows.new_zeros((most - len(rows), *rows.shape[1:])))) if len(rows) < most else rows
    )
    with waiting("gathering a split tensor"):
        found: torch.Tensor = _all_gather(padded.contiguous(), mesh)
    if len(found) == mesh.size:
        return found
    return torch.cat([own[:share] for own, share in zip(found.split(most), mesh.shares, strict=True)])


def bytes_of_tensors(tensors: Iterable[torch.Tensor]) -> Iterable[bytes]:
    """What `require_same` compares of inputs."""
    for tensor in tensors:
        yield f"{tensor.dtype} {list(tensor.shape)}".encode()
        yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
