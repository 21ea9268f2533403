"""Process groups, their registration and their works: the private names of torch.distributed.

`tests/torch_internals` states what each is expected to do, so that a torch release that changes one fails
there by name and not somewhere inside a model.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from .effects import Effect, Undo

# Untyped: the stubs describe C++ overloads that a Python subclass need not, and cannot, all offer.
ProcessGroup: Any = dist.ProcessGroup

_c10d: Any = c10d

# The namespace of the ops behind torch.distributed's functions.
COLLECTIVES = "c10d"

# What a functional collective calls its reduction, by what its process group is told.
REDUCTIONS: dict[Any, str] = {
    dist.ReduceOp.SUM: "sum",
    dist.ReduceOp.AVG: "avg",
    dist.ReduceOp.PRODUCT: "product",
    dist.ReduceOp.MIN: "min",
    dist.ReduceOp.MAX: "max",
}

# What torch calls a group's collectives, and what it called them before 2.12.
FORMER_NAMES = {
    "all_gather_single": "_allgather_base",
    "all_gather_single_coalesced": "allgather_into_tensor_coalesced",
    "reduce_scatter_single": "_reduce_scatter_base",
    "reduce_scatter_single_coalesced": "reduce_scatter_tensor_coalesced",
    "all_to_all_single": "alltoall_base",
}

_Group = TypeVar("_Group", bound=type)


def by_former_names(group: _Group) -> _Group:
    """Have a Python process group called by the names of every release of torch that is supported."""
    for name, former in FORMER_NAMES.items():
        if name in vars(group):
            setattr(group, former, vars(group)[name])
    return group


def register_group(name: str, group: dist.ProcessGroup) -> None:
    """Let functional collectives find `group` under `name`. Torch keeps a weak reference: hold the group."""
    _c10d._register_process_group(name, group)


def unregister_group(name: str) -> None:
    """Forget the group registered under `name`; a later collective on that name is an error."""
    _c10d._unregister_process_group(name)


def registered_group(name: str) -> dist.ProcessGroup:
    """The group under `name`; RuntimeError if there is none or it has died."""
    group: dist.ProcessGroup = _c10d._resolve_process_group(name)
    return group


def shared_store() -> Any:
    """A connection of its own to what the processes of the default group share, for another thread."""
    store: Any = dist.distributed_c10d._get_default_store()
    return store.clone()


def group_timeout(group: dist.ProcessGroup) -> float | None:
    """Seconds that a group's collectives on the CPU wait; None of a group that does not say."""
    backend: Any = group
    options = getattr(backend._get_backend(torch.device("cpu")), "options", None)
    given: timedelta | None = getattr(options, "_timeout", None)
    return None if given is None else given.total_seconds()


def completed_work() -> dist.Work:
    """A Work that is done. One may be returned any number of times, from any thread.

    A Work made from a completed future costs a third less per collective than a Python subclass of Work
    (20 against 28 microseconds for an all_reduce that does nothing).
    """
    future: torch.futures.Future[list[torch.Tensor]] = torch.futures.Future()
    future.set_result([torch.empty(0)])
    work: dist.Work = _c10d._create_work_from_future(future)
    return work


def waited_for(result: Any) -> Any:
    """What an op of `COLLECTIVES` has returned, after what it has begun is done.

    Its work is another then: Gloo's wait for the next message, where one waits twice for what was received.
    """
    if isinstance(result, tuple):
        return tuple(map(waited_for, result))
    if not isinstance(result, torch.ScriptObject):
        return result
    _c10d.Work.unbox(result).wait()
    return completed_work().boxed()


def scatter_of(plain: Callable[[Any], Any]) -> Effect:
    """What is scattered is `plain(lists)`: torch looks into no list of lists for a kind of tensor."""

    def change(scatter: Callable[..., Any]) -> Callable[..., Any]:
        def of_plain(group: Any, outputs: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            return scatter(group, outputs, plain(inputs), *rest, **named)

        return of_plain

    def install() -> Undo:
        before = {name: vars(ProcessGroup)[name] for name in ("scatter", "reduce_scatter")}
        for name in before:
            setattr(ProcessGroup, name, change(getattr(ProcessGroup, name)))

        def undo() -> bool:
            for name, method in before.items():
                setattr(ProcessGroup, name, method)
            return True

        return undo

    return Effect("plain tensors are scattered", install)


def below_autograd() -> AbstractContextManager[None]:
    """Skip autograd's dispatch, where nothing is to be recorded.

    torch.distributed._functional_collectives, which Dynamo imports, gives the collectives an autograd kernel
    in Python. Without grad mode it only passes the call on, for 23 of an all_reduce's 34 microseconds.
    In this context in-place ops do not bump version counters and views do not know their base.
    """
    guard: AbstractContextManager[None] = torch._C._AutoDispatchBelowAutograd()
    return guard


def outside_traces() -> AbstractContextManager[None]:
    """For collectives while torch traces other ops: kernels run without Python's lock, as they do elsewhere.

    Torch's Python dispatcher, which traces switch on, holds that lock while a kernel runs. A collective of
    Gloo's then waits for the queue of its group, and a thread of the group's, which holds that queue while
    it drops the tensors of the collective before, waits for Python's lock: neither ever goes on.
    """
    guard: AbstractContextManager[None] = torch._C._DisablePythonDispatcher()
    return guard


def nccl_available() -> bool:
    """Whether this build of torch has NCCL."""
    return dist.is_nccl_available()


def settings() -> tuple[Any, ...]:
    """What ops look at that is of the whole process, for another that is to compute the same."""
    precision = torch._C._get_fp32_precision_getter
    return (
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch._C._get_mkldnn_enabled(),
        *(precision("mkldnn", op) for op in _OPS_OF_ONEDNN),
    )


_OPS_OF_ONEDNN = ("matmul", "conv", "rnn")


def set_settings(given: tuple[Any, ...]) -> None:
    """Have what `settings` has said of another process."""
    dtype, deterministic, warn_only, onednn, *precisions = given
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch._C._set_mkldnn_enabled(onednn)
    for op, precision in zip(_OPS_OF_ONEDNN, precisions, strict=True):
        torch._C._set_fp32_precision_setter("mkldnn", op, precision)
