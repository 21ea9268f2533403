"""Collectives between rank threads in C++: as those in Python, with their errors, and no rank left behind."""

from __future__ import annotations

import random
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.fx import Graph, GraphModule

from tests.support import leaving
from tpfx.errors import CollectiveError, CollectiveTimeout, RankAborted, TpfxError
from tpfx.kernels.collectives import gather_shards
from tpfx.kernels.slices import take
from tpfx.native.rank_program import RankProgram
from tpfx.runtime import native_meeting
from tpfx.runtime.mesh import Mesh
from tpfx.runtime.thread_runtime import Runtime

CPU = torch.device("cpu")
c10d = torch.ops._c10d_functional


def runtime_of(size: int, timeout: float = 20.0) -> Runtime:
    return Runtime(Mesh((CPU,) * size), timeout)


def program(
    runtime: Runtime, rank: int, op: Any, *args: Any, before: Callable[..., Any] | None = None
) -> RankProgram:
    """A graph of one collective; `before` is called first, in Python."""
    graph = Graph()
    value = graph.placeholder("x")
    if before is not None:
        value = graph.call_function(before, (value,))
    sent = graph.call_function(op, (value, *args, runtime.mesh.group_name(rank)))
    graph.output((graph.call_function(c10d.wait_tensor.default, (sent,)),))
    return RankProgram(GraphModule({}, graph), rank, runtime.native_meeting())


def run(runtime: Runtime, programs: list[Any], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    if all(isinstance(one, RankProgram) for one in programs):
        return [found for (found,) in runtime.run_programs(programs, [(x,) for x in inputs])]
    calls = [lambda one=one, x=x: one(x) for one, x in zip(programs, inputs, strict=True)]  # type: ignore[misc]
    return [found for (found,) in runtime.run(calls)]


@pytest.fixture(params=[1 << 20, 0], ids=["last rank does all", "each rank does a share"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_meeting, "PARALLEL_BYTES", request.param)


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool)
REDUCTIONS = ("sum", "avg", "max", "min", "product")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_as_the_collectives_in_python(size: int, way: None) -> None:
    """To the bit: both go over the ranks in rank order."""
    runtime = runtime_of(size)
    generator = torch.Generator().manual_seed(size)
    ops: list[tuple[Any, ...]] = [(c10d.all_gather_into_tensor.default, size)]
    ops += [(c10d.broadcast.default, root) for root in range(size)]
    ops += [(c10d.all_to_all_single.default, [2] * size, [2] * size)]
    for how in REDUCTIONS:
        ops += [(c10d.all_reduce.default, how), (c10d.all_reduce_.default, how)]
        ops += [(c10d.reduce_scatter_tensor.default, how, size)]
    for op, *args in ops:
        for dtype in DTYPES:
            if ("avg" in args or "product" in args) and not dtype.is_floating_point:
                continue
            shape = (2 * size, 3)
            xs = [torch.randint(-5, 5, shape, generator=generator).to(dtype) * 1.1 for _ in range(size)]
            xs = [x.to(dtype) for x in xs]
            if "all_reduce" not in str(op) and torch.__version__ >= "2.12":  # torch 2.11 takes none such
                xs = [x.t().contiguous().t() for x in xs]  # not contiguous
            copies = [x.clone() for x in xs]
            found = run(runtime, [program(runtime, rank, op, *args) for rank in range(size)], xs)

            def direct(rank: int, op: Any = op, args: Any = args, copies: Any = copies) -> torch.Tensor:
                return c10d.wait_tensor(op(copies[rank], *args, runtime.mesh.group_name(rank)))

            expected = runtime.run([lambda rank=rank: direct(rank) for rank in range(size)])  # type: ignore[misc]
            for mine, theirs, x, copy in zip(found, expected, xs, copies, strict=True):
                assert torch.equal(mine, theirs), (op, args, dtype)
                assert torch.equal(x, copy)  # written in place, or not at all
    runtime.close()


@pytest.mark.parametrize("dim", [0, 1])
def test_equal_shards_are_gathered_without_python(dim: int) -> None:
    """Others, padded and cut, are gathered by Python's collectives."""
    runtime, whole = runtime_of(2), torch.randn(4, 6)
    for end in (whole.shape[dim] // 2, 1):
        owned = ((0, end),), ((end, whole.shape[dim]),)
        dims = ((dim, owned),)

        def gather(rank: int, dims: Any = dims) -> RankProgram:
            graph = Graph()
            shape, name = list(whole.shape), runtime.mesh.group_name(rank)
            args = (graph.placeholder("x"), dims, shape, rank, 2, name, ())
            graph.output((graph.call_function(gather_shards, args),))
            return RankProgram(GraphModule({}, graph), rank, runtime.native_meeting())

        programs = [gather(rank) for rank in (0, 1)]
        assert (programs[0].in_python == {}) == (end > 1)
        for found in run(runtime, programs, [take(whole, dims, rank) for rank in (0, 1)]):
            assert torch.equal(found, whole)
    runtime.close()


def test_unequal_rows_of_an_all_to_all() -> None:
    runtime = runtime_of(2)
    xs = [torch.arange(3.0), torch.arange(10.0, 14.0)]
    ones = [
        program(runtime, 0, c10d.all_to_all_single.default, [1, 3], [1, 2]),
        program(runtime, 1, c10d.all_to_all_single.default, [2, 1], [3, 1]),
    ]
    found = run(runtime, ones, xs)
    assert [one.tolist() for one in found] == [[0, 10, 11, 12], [1, 2, 13]]
    runtime.close()


@pytest.fixture(params=[1, 2], ids=["the caller is a rank", "threads alone"])
def caller(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the caller carries out the first rank's program: it has as many intra-op threads as a rank."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param == 1
    torch.set_num_threads(before)


@pytest.fixture
def pair(caller: bool) -> Iterator[Runtime]:
    runtime = runtime_of(2, timeout=1.0)
    yield runtime
    runtime.close()


def both(runtime: Runtime) -> list[RankProgram]:
    return [program(runtime, rank, c10d.all_reduce.default, "sum") for rank in (0, 1)]


def usable(runtime: Runtime) -> bool:
    return [one.tolist() for one in run(runtime, both(runtime), [torch.ones(2)] * 2)] == [[2, 2]] * 2


@pytest.mark.parametrize(
    ("xs", "how"),
    [
        ([torch.ones(2), torch.ones(3)], ("sum", "sum")),
        ([torch.ones(2), torch.ones(2, dtype=torch.int64)], ("sum", "sum")),
        ([torch.ones(2), torch.ones(2)], ("sum", "max")),
        ([torch.ones(2, dtype=torch.int64)] * 2, ("avg", "avg")),
    ],
    ids=["shape", "dtype", "reduction", "average of integers"],
)
def test_ranks_that_disagree(pair: Runtime, xs: list[torch.Tensor], how: tuple[str, str]) -> None:
    programs = [program(pair, rank, c10d.all_reduce.default, how[rank]) for rank in (0, 1)]
    with pytest.raises(CollectiveError) as caught:
        run(pair, programs, xs)
    text = str(caught.value)
    assert "rank 1: all_reduce(" in text or "integers have no average" in text
    assert usable(pair)


def test_a_rank_that_is_late_is_named_with_its_place(pair: Runtime) -> None:
    woken = threading.Event()

    def doze(x: torch.Tensor) -> torch.Tensor:
        woken.wait(60.0)
        return x

    late = program(pair, 1, c10d.all_reduce.default, "sum", before=doze)
    with pytest.raises(CollectiveTimeout) as caught:
        run(pair, [both(pair)[0], late], [torch.ones(2)] * 2)
    text = str(caught.value)
    assert (
        "rank 1 of 2 did not arrive in all_reduce(sum, f32[2]) (in node all_reduce_default) within 1 s"
        in text
    )
    assert "rank 1 (cpu): in node doze" in text
    assert "on rank 0 (cpu), in node all_reduce_default" in caught.value.__notes__[0]
    woken.set()
    assert usable(pair)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_releases_the_others(pair: Runtime, rank: int) -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")

    programs = both(pair)
    programs[rank] = program(pair, rank, c10d.all_reduce.default, "sum", before=fail)
    for _ in range(3):
        with pytest.raises(ValueError, match="no") as caught:
            run(pair, programs, [torch.ones(2)] * 2)
        assert caught.value.__notes__ == [f"on rank {rank} (cpu), in node fail"]
        assert usable(pair)


def test_the_callers_thread_runs_no_python_as_a_rank(pair: Runtime) -> None:
    """It could be stuck, and cannot be given up."""
    threads: dict[int, int] = {}

    def note(rank: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def noted(x: torch.Tensor) -> torch.Tensor:
            threads[rank] = threading.get_ident()
            return x

        return noted

    programs = [program(pair, rank, c10d.all_reduce.default, "sum", before=note(rank)) for rank in (0, 1)]
    run(pair, programs, [torch.ones(2)] * 2)
    assert threading.get_ident() not in threads.values() and len(set(threads.values())) == 2
    assert programs[0].in_python == {"noted": "noted, a function of Python"}


@pytest.mark.parametrize("rank", [0, 1])
def test_an_op_that_fails_on_one_rank(pair: Runtime, rank: int) -> None:
    def lookup(at: int) -> RankProgram:
        graph = Graph()
        rows = graph.call_function(
            torch.ops.aten.embedding.default, (graph.placeholder("x"), graph.get_attr("ids"))
        )
        sent = graph.call_function(c10d.all_reduce.default, (rows, "sum", pair.mesh.group_name(at)))
        graph.output((sent,))
        return RankProgram(GraphModule({"ids": ids[at]}, graph), at, pair.native_meeting())

    for wrong in (3, 0):
        ids = {at: torch.tensor([wrong if at == rank else 0]) for at in (0, 1)}
        programs = [lookup(at) for at in (0, 1)]
        if wrong:
            with pytest.raises(IndexError) as caught:
                run(pair, programs, [torch.ones(2, 2)] * 2)
            assert caught.value.__notes__ == [f"on rank {rank} (cpu), in node embedding_default"]
        else:
            assert run(pair, programs, [torch.ones(2, 2)] * 2)[0].tolist() == [[2, 2]]


def test_modes_of_programs_are_the_callers(pair: Runtime) -> None:
    seen: list[tuple[bool, bool]] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return x

    programs = [program(pair, rank, c10d.all_reduce.default, "sum", before=note) for rank in (0, 1)]
    for mode in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with mode:
            run(pair, programs, [torch.ones(2)] * 2)
    assert seen == [(True, False)] * 2 + [(False, False)] * 2 + [(False, True)] * 2


def test_a_run_inside_of_a_rank_is_refused(pair: Runtime) -> None:
    def again(x: torch.Tensor) -> torch.Tensor:
        run(pair, both(pair), [x] * 2)
        return x

    programs = [program(pair, 0, c10d.all_reduce.default, "sum", before=again), both(pair)[1]]
    with pytest.raises(TpfxError, match="inside a rank's thread"):
        run(pair, programs, [torch.ones(2)] * 2)
    assert usable(pair)


def test_ctrl_c_ends_a_wait_for_a_rank_that_is_late(caller: bool) -> None:
    runtime = runtime_of(2, timeout=20.0)
    woken = threading.Event()

    def doze(x: torch.Tensor) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)  # of the process: its main thread has the handler
        woken.wait(60.0)
        return x

    late = program(runtime, 1, c10d.all_reduce.default, "sum", before=doze)
    for _ in range(5):  # wherever in the run it comes
        woken.clear()
        timer = threading.Timer(0.2, woken.set)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            run(runtime, [both(runtime)[0], late], [torch.ones(2)] * 2)
        timer.join()
        assert usable(runtime)
    runtime.close()


def test_arguments_are_let_go_after_their_last_use(pair: Runtime) -> None:
    """Though the caller of the run has not returned."""
    seen: list[bool] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(given[0]() is None)
        return x

    def graph_of(rank: int) -> RankProgram:
        graph = Graph()
        value = graph.call_function(torch.ops.aten.neg.default, (graph.placeholder("x"),))
        graph.output((graph.call_function(torch.neg if rank else look, (value,)),))
        return RankProgram(GraphModule({}, graph), rank, pair.native_meeting())

    rows = [(torch.ones(2),), (torch.ones(2),)]
    given = [weakref.ref(rows[0][0])]
    pair.run_programs([graph_of(rank) for rank in (0, 1)], rows)
    assert seen == [True] and rows == []


def test_a_profiler_sees_the_nodes_of_the_callers_thread(pair: Runtime, caller: bool) -> None:
    with torch.profiler.profile() as profile:
        run(pair, both(pair), [torch.ones(2)] * 2)
    names = [event.name for event in profile.events()]
    assert names.count("all_reduce_default") == caller
    with torch.autocast("cpu", torch.bfloat16), torch.profiler.profile() as profile:
        run(pair, both(pair), [torch.ones(2)] * 2)  # what a graph does is decided: not here
    assert "all_reduce_default" not in [event.name for event in profile.events()]


def test_a_thread_that_was_given_up_does_not_meet_later_runs() -> None:
    """It comes back while the next run's ranks meet."""
    runtime = runtime_of(2, timeout=1.0)
    seen: list[BaseException] = []
    woken, back = threading.Event(), threading.Event()

    def stuck(x: torch.Tensor) -> torch.Tensor:
        woken.wait(60.0)
        return x

    late = program(runtime, 1, c10d.all_reduce.default, "sum", before=stuck)

    def come_back(x: torch.Tensor) -> Any:
        try:
            return late(x)
        except BaseException as error:
            seen.append(error)
            back.set()
            raise

    with pytest.raises(CollectiveTimeout):
        run(runtime, [both(runtime)[0], come_back], [torch.full((2,), 7.0)] * 2)
    programs = [both(runtime)[0], program(runtime, 1, c10d.all_reduce.default, "sum", before=wake(woken))]
    for _ in range(3):
        found = run(runtime, programs, [torch.ones(2)] * 2)
        assert [one.tolist() for one in found] == [[2, 2]] * 2
        assert back.wait(60.0)
    assert [type(one) for one in seen] == [RankAborted]
    runtime.close()


def wake(woken: threading.Event) -> Callable[[torch.Tensor], torch.Tensor]:
    def call(x: torch.Tensor) -> torch.Tensor:
        woken.set()
        return x

    return call


def test_many_rounds_with_ranks_that_fail_in_python(caller: bool) -> None:
    """Graphs of some collectives between three ranks, of which one fails here and there."""
    runtime, chance = runtime_of(3), random.Random(0)
    failing: set[tuple[int, int]] = set()

    def graph_of(rank: int) -> RankProgram:
        graph = Graph()
        value = graph.placeholder("x")
        for at in range(5):

            def step(x: torch.Tensor, at: int = at) -> torch.Tensor:
                if (rank, at) in failing:
                    raise ValueError(f"{rank} {at}")
                return x + 1

            value = graph.call_function(step, (value,)) if at % 2 else value
            sent = graph.call_function(c10d.all_reduce.default, (value, "sum", runtime.mesh.group_name(rank)))
            value = graph.call_function(c10d.wait_tensor.default, (sent,))
        graph.output((value,))
        return RankProgram(GraphModule({}, graph), rank, runtime.native_meeting())

    programs = [graph_of(rank) for rank in range(3)]
    expected = run(runtime, programs, [torch.ones(4)] * 3)[0]
    for _ in range(100):
        failing.clear()
        if chance.random() < 0.5:
            failing.add((chance.randrange(3), chance.choice((1, 3))))
            with pytest.raises(ValueError, match=r"\d \d"):
                run(runtime, programs, [torch.ones(4)] * 3)
        else:
            for found in run(runtime, programs, [torch.ones(4)] * 3):
                assert torch.equal(found, expected)
    runtime.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_rounds_with_ranks_that_leave(way: None, caller: bool) -> None:
    runtime = runtime_of(3, timeout=60.0)
    programs = [leaving.program(runtime.mesh, rank, runtime.native_meeting()) for rank in range(3)]

    def run_round(number: int, who: dict[int, int]) -> list[torch.Tensor]:
        rows = [leaving.given(rank, 3, number, who) for rank in range(3)]
        return [found for (found,) in runtime.run_programs(programs, rows)]

    threads = threading.active_count()
    leaving.check(3, 10_000, run_round)
    assert threading.active_count() == threads
    runtime.close()
