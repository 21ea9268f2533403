"""What tpfx expects of each private name of torch; a failure here names what a torch release changed."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.processes import free_port
from tpfx.torch_internals import distributed, inductor

OPS = torch.ops._c10d_functional

# The method that torch calls for each functional collective. If a test below misses a call, torch has renamed
# the method: rename it in tpfx/runtime/process_groups.py too, and add what it was called to FORMER_NAMES.
METHODS = {
    "all_reduce": "allreduce",
    "all_reduce_coalesced": "allreduce_coalesced",
    "all_gather_into_tensor": "all_gather_single_coalesced",
    "reduce_scatter_tensor": "reduce_scatter_single_coalesced",
    "all_to_all_single": "all_to_all_single",
    "broadcast": "broadcast",
}


class Recorder(distributed.ProcessGroup):  # type: ignore[misc]
    """Notes what is called, and returns a completed work."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        self.calls: list[tuple[str, tuple[object, ...]]] = []
        self.done = distributed.completed_work()


def recording(name: str) -> object:
    def method(self: Recorder, *arguments: object) -> object:
        self.calls.append((name, arguments))
        return self.done

    return method


for _name in METHODS.values():
    setattr(Recorder, _name, recording(_name))
distributed.by_former_names(Recorder)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("all_reduce", ("sum",)),
        ("all_gather_into_tensor", (2,)),
        ("reduce_scatter_tensor", ("max", 2)),
        ("all_to_all_single", ([1, 3], [1, 3])),
        ("broadcast", (1,)),
    ],
)
def test_functional_collectives_call_a_python_group(op: str, arguments: tuple[object, ...]) -> None:
    group = Recorder()
    distributed.register_group("tpfx:test", group)
    try:
        OPS.wait_tensor(getattr(OPS, op)(torch.ones(4), *arguments, "tpfx:test"))
    finally:
        distributed.unregister_group("tpfx:test")
    assert [name for name, _ in group.calls] == [METHODS[op]]


def test_a_group_is_called_by_the_names_of_each_release() -> None:
    """Whichever of the two this release calls, it is the same method."""
    for name, former in distributed.FORMER_NAMES.items():
        if name in METHODS.values():
            assert getattr(Recorder, former) is getattr(Recorder, name)
        assert hasattr(torch.distributed.ProcessGroup, former) or hasattr(
            torch.distributed.ProcessGroup, name
        )


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process alone."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_collectives_are_ops_that_return_their_work() -> None:
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = op(*args, **(kwargs or {}))
            if op.namespace != distributed.COLLECTIVES:
                return result
            ops.append(op._schema.name)
            return distributed.waited_for(result)

    ops: list[str] = []
    x, gathered = torch.ones(3), [torch.zeros(3)]
    with Seen():
        torch.distributed.all_reduce(x)
        torch.distributed.broadcast(x, 0, async_op=True).wait()  # type: ignore[union-attr]
        torch.distributed.all_gather(gathered, x)
    assert ops == ["c10d::allreduce_", "c10d::broadcast_", "c10d::allgather_"]
    assert gathered[0].tolist() == [1] * 3


@pytest.mark.usefixtures("alone")
def test_what_is_scattered_is_what_is_said_to_be_plain() -> None:
    twice = distributed.scatter_of(lambda lists: [[one * 2 for one in each] for each in lists])
    undo, x, y = twice.install(), torch.zeros(3), torch.zeros(3)
    torch.distributed.scatter(x, [torch.ones(3)])
    torch.distributed.reduce_scatter(y, [torch.ones(3)])
    assert undo() and x.tolist() == y.tolist() == [2] * 3
    torch.distributed.scatter(x, [torch.ones(3)])
    assert x.tolist() == [1] * 3


def test_another_thread_has_a_connection_of_its_own_to_what_processes_share() -> None:
    store = torch.distributed.TCPStore("127.0.0.1", int(free_port()), 1, is_master=True)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        one, other = distributed.shared_store(), distributed.shared_store()
        one.set("key", "value")
        assert one is not other and other.get("key") == b"value" and not other.check(["none"])
    finally:
        torch.distributed.destroy_process_group()


def test_a_group_says_how_long_it_waits() -> None:
    store = torch.distributed.TCPStore("127.0.0.1", int(free_port()), 1, is_master=True)
    torch.distributed.init_process_group(
        "gloo", timeout=timedelta(seconds=17), store=store, rank=0, world_size=1
    )
    try:
        assert distributed.group_timeout(torch.distributed.group.WORLD) == 17.0
    finally:
        torch.distributed.destroy_process_group()


def test_no_process_group_is_initialised() -> None:
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("reduction", ["sum", "avg", "product", "min", "max"])
def test_reductions_have_a_name(reduction: str) -> None:
    group = Recorder()
    distributed.register_group("tpfx:test", group)
    try:
        OPS.wait_tensor(OPS.all_reduce(torch.ones(4), reduction, "tpfx:test"))
    finally:
        distributed.unregister_group("tpfx:test")
    options = group.calls[0][1][1]
    assert distributed.REDUCTIONS[options.reduceOp.op] == reduction  # type: ignore[attr-defined]


def test_an_exception_passes_through_the_op_unchanged() -> None:
    class Failing(Recorder):
        def allreduce(self, *_: object) -> object:
            raise problem

    problem = KeyError("mine")
    group = Failing()
    distributed.register_group("tpfx:test", group)
    try:
        with pytest.raises(KeyError) as caught:
            OPS.all_reduce(torch.ones(4), "sum", "tpfx:test")
    finally:
        distributed.unregister_group("tpfx:test")
    assert caught.value is problem


def test_torch_holds_groups_weakly_and_names_can_be_reused() -> None:
    group = Recorder()
    distributed.register_group("tpfx:test", group)
    assert distributed.registered_group("tpfx:test") is group
    distributed.unregister_group("tpfx:test")
    with pytest.raises(RuntimeError, match="resolve"):
        distributed.registered_group("tpfx:test")
    distributed.register_group("tpfx:test", group)
    distributed.unregister_group("tpfx:test")


def test_a_completed_work_may_be_waited_for_again_and_again() -> None:
    work = distributed.completed_work()
    assert all(work.wait() for _ in range(3))


def test_nccl_is_there_with_the_names_that_it_is_called_by() -> None:
    assert distributed.nccl_available() == hasattr(torch._C, "_nccl_all_reduce")


def test_below_autograd_skips_the_autograd_kernels() -> None:
    x = torch.ones(2, requires_grad=True)
    with distributed.below_autograd():
        assert not (x + 1).requires_grad
    assert (x + 1).requires_grad


def test_outside_traces_the_python_dispatcher_is_off() -> None:
    """If this fails while torch traces, `test_comparing_amid_a_trace_does_not_lock_up` stands still."""
    enabled = torch._C._dispatch_tls_is_dispatch_key_included  # of this thread
    key = torch._C.DispatchKey.PythonDispatcher
    with torch._C._EnablePythonDispatcher():
        assert enabled(key)
        with distributed.outside_traces():
            assert not enabled(key)
        assert enabled(key)


@pytest.mark.parametrize(
    ("rows", "inner", "outer"), [((1, 1), 8, 5), ((2, 3), 8, 0), ((0, 3), 8, 5), ((7,), 1, 1)]
)
def test_the_linear_of_onednn_is_linear(rows: tuple[int, ...], inner: int, outer: int) -> None:
    x, weight = torch.randn(*rows, inner), torch.randn(outer, inner)
    for left in (x, torch.randn(inner, *rows).movedim(0, -1), x[:1].expand(*rows, inner)):
        for right in (weight, torch.randn(inner, outer).t(), torch.randn(outer, 2 * inner)[:, :inner]):
            call = inductor.linear_of_onednn(left, right)
            if call is None:
                pytest.skip("torch was built without oneDNN")
            torch.testing.assert_close(call[0](*call[1:]), torch.nn.functional.linear(left, right))


def test_another_process_can_be_given_the_settings_that_ops_look_at():
    before = distributed.settings()
    assert before[0] is torch.float32 and len(before) == 7
    other = (torch.float64, True, True, False, "ieee", "tf32", "bf16")
    try:
        distributed.set_settings(other)
        assert distributed.settings() == other
        assert torch.get_default_dtype() is torch.float64 and torch.are_deterministic_algorithms_enabled()
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    finally:
        distributed.set_settings(before)
    assert distributed.settings() == before
