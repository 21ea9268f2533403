"""The functional collectives between rank threads, against plain torch on the ranks' tensors."""

import gc
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tpfx.errors import CollectiveError
from tpfx.runtime import thread_collectives
from tpfx.runtime.mesh import Mesh
from tpfx.runtime.thread_collectives import CollectiveCall
from tpfx.runtime.thread_runtime import Runtime
from tpfx.torch_internals import distributed

SIZES = (1, 2, 3, 5)
OPS = torch.ops._c10d_functional
Collective = Callable[[Tensor, str, int], Tensor]


@contextmanager
def running(size: int, timeout: float = 10.0) -> Iterator[Runtime]:
    runtime = Runtime(Mesh((torch.device("cpu"),) * size), timeout)
    yield runtime
    runtime.close()


def on_ranks(size: int, inputs: list[Tensor], collective: Collective) -> list[Tensor]:
    def call(rank: int) -> Tensor:
        name = runtime.mesh.group_name(rank)
        result: Tensor = OPS.wait_tensor(collective(inputs[rank], name, rank))
        return result

    with running(size) as runtime:
        return runtime.run([lambda rank=rank: call(rank) for rank in range(size)])  # type: ignore[misc]


def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2 if dtype == torch.bool else 9, shape, generator=generator).to(dtype)


def reference(inputs: list[Tensor], reduction: str) -> Tensor:
    """In rank order; bfloat16 in float32."""
    dtype = inputs[0].dtype
    wide = [x.float() if dtype == torch.bfloat16 else x for x in inputs]
    total = wide[0].clone()
    for x in wide[1:]:
        match reduction:
            case "sum" | "avg":
                total = total + x
            case "product":
                total = total * x
            case "max":
                total = torch.maximum(total, x)
            case "min":
                total = torch.minimum(total, x)
    return (total / len(inputs) if reduction == "avg" else total).to(dtype)


CASES = [
    (dtype, reduction)
    for dtype in (torch.float32, torch.bfloat16, torch.int64)
    for reduction in ("sum", "avg", "max", "min", "product")
    if not (dtype == torch.int64 and reduction == "avg")
] + [(torch.bool, "max"), (torch.bool, "sum")]


@pytest.fixture(params=["last rank does all", "each rank does a share"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "each rank does a share":
        monkeypatch.setattr(thread_collectives, "PARALLEL_BYTES", 0)


@pytest.mark.parametrize("size", SIZES)
def test_all_reduce(size: int, way: None) -> None:
    def collective(_: Tensor, name: str, rank: int) -> Tensor:
        results = [
            OPS.wait_tensor(OPS.all_reduce(draw((3, 7), dtype, rank), reduction, name))
            for dtype, reduction in CASES
        ]
        return torch.cat([result.to(torch.float64).flatten() for result in results])

    got = on_ranks(size, [torch.zeros(1)] * size, collective)
    want = [reference([draw((3, 7), dtype, rank) for rank in range(size)], how) for dtype, how in CASES]
    expected = torch.cat([result.to(torch.float64).flatten() for result in want])
    for result in got:
        assert torch.equal(result, expected)


@pytest.mark.parametrize("size", SIZES)
def test_all_reduce_leaves_its_input_and_any_strides_alone(size: int, way: None) -> None:
    inputs = [draw((4, 6), torch.float32, rank).t() for rank in range(size)]
    before = [x.clone() for x in inputs]
    got = on_ranks(size, inputs, lambda x, name, rank: OPS.all_reduce(x, "sum", name))
    for rank in range(size):
        assert torch.equal(inputs[rank], before[rank])
        assert torch.equal(got[rank], reference(before, "sum"))


@pytest.mark.parametrize("size", SIZES)
def test_all_reduce_in_place_of_strided_and_empty(size: int, way: None) -> None:
    inputs = [draw((4, 6), torch.float32, rank).t() for rank in range(size)]
    expected = reference([x.clone() for x in inputs], "sum")
    on_ranks(size, inputs, lambda x, name, rank: OPS.all_reduce_(x, "sum", name))
    assert all(torch.equal(x, expected) for x in inputs)
    empty = on_ranks(size, [torch.empty(0, 3)] * size, lambda x, name, rank: OPS.all_reduce(x, "sum", name))
    assert all(x.shape == (0, 3) for x in empty)


def test_big_all_reduce_has_the_same_bits_on_all_ranks() -> None:
    inputs = [draw((3, 100_003), torch.float32, rank) for rank in range(3)]
    assert inputs[0].nbytes > thread_collectives.PARALLEL_BYTES
    for result in on_ranks(3, inputs, lambda x, name, rank: OPS.all_reduce(x, "sum", name)):
        assert torch.equal(result, reference(inputs, "sum"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("size", SIZES)
def test_all_gather(size: int, dtype: torch.dtype, way: None) -> None:
    inputs = [draw((3, 4), dtype, rank) for rank in range(size)]
    got = on_ranks(size, inputs, lambda x, name, rank: OPS.all_gather_into_tensor(x, size, name))
    assert all(torch.equal(result, torch.cat(inputs)) for result in got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("size", SIZES)
def test_reduce_scatter(size: int, dtype: torch.dtype, way: None) -> None:
    inputs = [draw((2 * size, 3), dtype, rank) for rank in range(size)]
    got = on_ranks(size, inputs, lambda x, name, rank: OPS.reduce_scatter_tensor(x, "sum", size, name))
    for result, expected in zip(got, reference(inputs, "sum").chunk(size), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("size", SIZES)
def test_all_to_all_with_uneven_splits(size: int, way: None) -> None:
    sent = [[(source + 2 * target) % 4 for target in range(size)] for source in range(size)]
    inputs = [draw((sum(sent[rank]), 2), torch.float32, rank) for rank in range(size)]

    def collective(x: Tensor, name: str, rank: int) -> Tensor:
        received = [sent[source][rank] for source in range(size)]
        result: Tensor = OPS.all_to_all_single(x, received, sent[rank], name)
        return result

    got = on_ranks(size, inputs, collective)
    pieces = [x.split(splits) for x, splits in zip(inputs, sent, strict=True)]
    for rank, result in enumerate(got):
        assert torch.equal(result, torch.cat([pieces[source][rank] for source in range(size)]))


@pytest.mark.parametrize("size", SIZES)
def test_broadcast(size: int, way: None) -> None:
    inputs = [draw((5,), torch.int64, rank) for rank in range(size)]
    got = on_ranks(size, inputs, lambda x, name, rank: OPS.broadcast(x, size - 1, name))
    assert all(torch.equal(result, inputs[-1]) for result in got)


def test_coalesced() -> None:
    inputs = [draw((5,), torch.int64, rank) for rank in range(2)]

    def collective(x: Tensor, name: str, rank: int) -> Tensor:
        first, second = OPS.all_reduce_coalesced([x, 10 * x], "sum", name)
        return torch.cat([OPS.wait_tensor(first), OPS.wait_tensor(second)])

    total = inputs[0] + inputs[1]
    assert all(torch.equal(x, torch.cat([total, 10 * total])) for x in on_ranks(2, inputs, collective))


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            lambda x, name: OPS.all_reduce(x, "sum", name),
            lambda x, name: OPS.all_gather_into_tensor(x, 2, name),
            r"rank 0: all_reduce\(sum, f32\[4, 2\]\)\n  rank 1: all_gather\(f32\[4, 2\]\)",
        ),
        (
            lambda x, name: OPS.all_reduce(x, "sum", name),
            lambda x, name: OPS.all_reduce(x, "max", name),
            r"all_reduce\(sum.*\n.*all_reduce\(max",
        ),
        (
            lambda x, name: OPS.all_reduce(x, "sum", name),
            lambda x, name: OPS.all_reduce(x[:3], "sum", name),
            r"f32\[4, 2\]\)\n.*f32\[3, 2\]",
        ),
        (
            lambda x, name: OPS.all_reduce(x, "sum", name),
            lambda x, name: OPS.all_reduce(x.to(torch.bfloat16), "sum", name),
            r"f32\[4, 2\]\)\n.*bf16\[4, 2\]",
        ),
        (
            lambda x, name: OPS.broadcast(x, 0, name),
            lambda x, name: OPS.broadcast(x, 1, name),
            r"from 0\)\n.*from 1\)",
        ),
        (
            lambda x, name: OPS.all_to_all_single(x, [2, 2], [2, 2], name),
            lambda x, name: OPS.all_to_all_single(x, [1, 3], [1, 3], name),
            r"in \[2, 2\]\)\n.*in \[1, 3\]\)",
        ),
    ],
)
def test_ranks_that_disagree(
    first: Callable[[Tensor, str], Tensor], second: Callable[[Tensor, str], Tensor], words: str
) -> None:
    seen: list[BaseException] = []

    def call(collective: Callable[[Tensor, str], Tensor], rank: int) -> None:
        try:
            collective(torch.zeros(4, 2), runtime.mesh.group_name(rank))
        except CollectiveError as error:
            seen.append(error)
            raise

    with running(2) as runtime:
        with pytest.raises(CollectiveError, match=words):
            runtime.run([lambda: call(first, 0), lambda: call(second, 1)])
        assert len(seen) == 2


def test_a_collective_that_fails_releases_all(way: None) -> None:
    def average(rank: int) -> Tensor:
        ones = torch.ones(3, dtype=torch.int64)
        result: Tensor = OPS.all_reduce(ones, "avg", runtime.mesh.group_name(rank))
        return result

    with running(3) as runtime, pytest.raises(CollectiveError, match=r"avg.*i64"):
        runtime.run([lambda: average(0), lambda: average(1), lambda: average(2)])


def test_under_grad_mode_nothing_is_recorded() -> None:
    inputs = [torch.ones(3, requires_grad=True) for _ in range(2)]
    for result in on_ranks(2, inputs, lambda x, name, rank: OPS.all_reduce(x, "sum", name)):
        assert torch.equal(result, torch.full((3,), 2.0))


def test_groups_are_unregistered() -> None:
    with running(2) as runtime:
        names = runtime.mesh.names
        assert distributed.registered_group(names[1]).rank() == 1
    for name in names:
        with pytest.raises(RuntimeError, match="resolve"):
            distributed.registered_group(name)
    collected = Runtime(Mesh((torch.device("cpu"),) * 2))
    names = collected.mesh.names
    del collected
    gc.collect()
    with pytest.raises(RuntimeError, match="resolve"):
        distributed.registered_group(names[0])


class Devices:
    """As NCCL finds them: what is allocated while a collective runs on some devices only waits, for ever."""

    def __init__(self, size: int) -> None:
        self.size, self.started = size, set[int]()

    def allocate(self) -> None:
        if 0 < len(self.started) < self.size:
            raise RuntimeError("an allocation waits for a device that waits for another")

    def start(self, rank: int) -> None:
        self.started.add(rank)
        time.sleep(1e-3)  # for other threads to come between

    def issue(self, calls: list[CollectiveCall], streams: list[Any]) -> bool:
        for rank in range(self.size):
            self.start(rank)
        thread_collectives.carry_out(calls, range(self.size))
        self.started.clear()
        return True


def test_no_thread_allocates_while_a_collective_is_started() -> None:
    devices = Devices(3)

    def call(rank: int, name: str) -> Tensor:
        x = torch.tensor([rank + 1.0])
        for _ in range(20):
            devices.allocate()
            x = OPS.wait_tensor(OPS.all_reduce(x, "avg", name))
        return x

    with running(3) as runtime:
        runtime._groups.meeting._issue = devices.issue  # as for ranks that have a GPU each
        names = runtime.mesh.names
        assert (
            torch.cat(runtime.run([partial(call, rank, names[rank]) for rank in range(3)])).tolist()
            == [2.0] * 3
        )


def test_a_collective_that_each_rank_starts_would_not_do() -> None:
    """What the test before this one is there to find."""
    devices = Devices(2)
    devices.start(0)
    with pytest.raises(RuntimeError, match="waits for a device"):
        devices.allocate()


class Nccl:
    """Stands in for torch.cuda.nccl on the CPU."""

    def __init__(self) -> None:
        self.streams: list[Any] = []

    def is_available(self, tensors: Sequence[Tensor]) -> bool:
        return all(tensor.is_contiguous() for tensor in tensors)

    def _all(self, reduction: int, inputs: Sequence[Tensor]) -> Tensor:
        names = {number: name for name, number in thread_collectives._NCCL_REDUCTIONS.items()}
        return reference(list(inputs), names[reduction])

    def all_reduce(self, inputs: Any, outputs: Any, op: int, streams: list[Any]) -> None:
        whole, self.streams = self._all(op, inputs), streams
        for output in outputs:
            output.copy_(whole)

    def all_gather(self, inputs: Any, outputs: Any, streams: list[Any]) -> None:
        for output in outputs:
            output.copy_(torch.cat(tuple(inputs)))

    def reduce_scatter(self, inputs: Any, outputs: Any, op: int, streams: list[Any]) -> None:
        for output, part in zip(outputs, self._all(op, inputs).chunk(len(outputs)), strict=True):
            output.copy_(part)

    def broadcast(self, inputs: Any, root: int, streams: list[Any]) -> None:
        for tensor in inputs:
            tensor.copy_(inputs[root])


COLLECTIVES: dict[str, Callable[[Tensor, str, int], Tensor]] = {
    "all_reduce": lambda x, name, rank: OPS.all_reduce(x, "max", name),
    "all_gather": lambda x, name, rank: OPS.all_gather_into_tensor(x, 2, name),
    "reduce_scatter": lambda x, name, rank: OPS.reduce_scatter_tensor(x, "sum", 2, name),
    "broadcast": lambda x, name, rank: OPS.broadcast(x, 1, name),
}


@pytest.mark.parametrize("kind", COLLECTIVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int16])
def test_ranks_with_a_gpu_each_go_through_nccl(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it cannot take is copied."""
    inputs = [draw((4, 3), torch.float32, seed).to(dtype) for seed in range(2)]
    expected = on_ranks(2, inputs, COLLECTIVES[kind])
    nccl, taken = Nccl(), []
    monkeypatch.setattr(thread_collectives, "nccl", nccl)
    monkeypatch.setattr(distributed, "nccl_available", lambda: True)

    def issue(calls: list[CollectiveCall], streams: list[Any]) -> bool:
        taken.append(thread_collectives.issue(calls, streams))
        return taken[-1]

    with running(2) as runtime:
        runtime._groups.meeting._issue = issue
        calls = [
            partial(COLLECTIVES[kind], inputs[rank], runtime.mesh.names[rank], rank) for rank in range(2)
        ]
        found = runtime.run([lambda call=call: OPS.wait_tensor(call()) for call in calls])  # type: ignore[misc]
    assert taken == [dtype != torch.int16]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_names_of_nccl_exist() -> None:
    """With these parameters, in this order."""
    for kind, names in {
        "all_reduce": ["inputs", "outputs", "op", "streams"],
        "all_gather": ["inputs", "outputs", "streams"],
        "reduce_scatter": ["inputs", "outputs", "op", "streams"],
        "broadcast": ["inputs", "root", "streams"],
    }.items():
        assert list(inspect.signature(getattr(torch.cuda.nccl, kind)).parameters)[: len(names)] == names


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_ranks_that_share_a_gpu() -> None:
    runtime = Runtime(Mesh((torch.device("cuda", 0),) * 2), timeout=30.0)
    x = torch.randn(1 << 20, device="cuda:0")

    def call(rank: int) -> Tensor:
        y = x * (rank + 1)
        result: Tensor = OPS.wait_tensor(OPS.all_reduce(y, "sum", runtime.mesh.group_name(rank)))
        return result

    for result in runtime.run([lambda: call(0), lambda: call(1)]):
        torch.testing.assert_close(result, 3 * x)
    runtime.close()


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_ranks_with_a_gpu_each_and_their_recovery() -> None:
    runtime = Runtime(Mesh((torch.device("cuda", 0), torch.device("cuda", 1))), timeout=30.0)

    def call(rank: int, fail: bool) -> Tensor:
        if fail and rank == 1:
            raise ValueError("mine")
        x = torch.ones(4, device=runtime.mesh.devices[rank])
        result: Tensor = OPS.wait_tensor(OPS.all_reduce(x, "sum", runtime.mesh.group_name(rank)))
        return result

    for fail in (False, True, False):
        if fail:
            with pytest.raises(ValueError, match="mine"):
                runtime.run([lambda: call(0, True), lambda: call(1, True)])
        else:
            for result in runtime.run([lambda: call(0, False), lambda: call(1, False)]):
                assert result.tolist() == [2.0] * 4
    runtime.close()
