"""The rank threads: results, modes, failures, timeouts, and their end."""

import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, fx

from tpfx.errors import CollectiveError, CollectiveTimeout, RankAborted, TpfxError
from tpfx.runtime import thread_runtime
from tpfx.runtime.mesh import Mesh
from tpfx.runtime.thread_runtime import Runtime, node_of

CPU = torch.device("cpu")
OPS = torch.ops._c10d_functional


@pytest.fixture
def pair() -> Iterator[Runtime]:
    runtime = Runtime(Mesh((CPU, CPU)), timeout=0.3)
    yield runtime
    runtime.close()


def rank_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("tpfx rank")]


def reduce_ones(runtime: Runtime, rank: int) -> Tensor:
    result: Tensor = OPS.wait_tensor(OPS.all_reduce(torch.ones(2), "sum", runtime.mesh.group_name(rank)))
    return result


def check_usable(runtime: Runtime) -> None:
    ranks = runtime.mesh.owned
    # type: ignore[misc]
    results = runtime.run([lambda rank=rank: reduce_ones(runtime, rank) for rank in ranks])
    assert [result.tolist() for result in results] == [[float(len(ranks))] * 2] * len(ranks)


def module(runtime: Runtime, rank: int, function: Callable[..., Tensor]) -> fx.GraphModule:
    """x → `function` named "before" → all_reduce named "together", as generated code."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    before = graph.create_node("call_function", function, (x,), name="before")
    name = runtime.mesh.group_name(rank)
    together = graph.create_node(
        "call_function", OPS.all_reduce.default, (before, "sum", name), name="together"
    )
    graph.output(graph.call_function(OPS.wait_tensor.default, (together,)))
    return fx.GraphModule(torch.nn.Module(), graph)


def fail(x: Tensor) -> Tensor:
    raise ValueError("mine")


def test_each_call_runs_in_the_thread_of_its_rank(pair: Runtime) -> None:
    first = pair.run([threading.get_ident, threading.get_ident])
    assert len({*first, threading.get_ident()}) == 3
    assert pair.run([threading.get_ident, threading.get_ident]) == first
    check_usable(pair)


def test_one_rank() -> None:
    runtime = Runtime(Mesh((CPU,)))
    check_usable(runtime)
    runtime.close()


def test_modes_are_the_callers(pair: Runtime) -> None:
    def modes() -> tuple[bool, bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")

    assert pair.run([modes, modes]) == [(True, False, False)] * 2
    with torch.no_grad():
        assert pair.run([modes, modes]) == [(False, False, False)] * 2
    with torch.inference_mode():
        assert pair.run([modes, modes]) == [(False, True, False)] * 2
    with torch.autocast("cpu", torch.bfloat16):
        assert pair.run([modes, modes]) == [(True, False, False)] * 2


def test_collectives_in_inference_mode(pair: Runtime) -> None:
    with torch.inference_mode():
        check_usable(pair)


def test_ranks_share_the_cores_and_the_caller_keeps_its_own() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        runtime = Runtime(Mesh((CPU, CPU)))
        assert runtime.run([torch.get_num_threads] * 2) == [2, 2]
        runtime.close()
        runtime = Runtime(Mesh((CPU,) * 5))
        assert runtime.run([torch.get_num_threads] * 5) == [1] * 5
        runtime.close()
        assert torch.get_num_threads() == 4
        other: list[int] = []
        thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert other == [4]
    finally:
        torch.set_num_threads(before)


def test_a_failure_is_the_ranks_own_and_releases_the_others(pair: Runtime) -> None:
    problem = ValueError("mine")
    seen: list[BaseException] = []

    def waits() -> None:
        try:
            reduce_ones(pair, 0)
        except BaseException as error:
            seen.append(error)
            raise

    def fails() -> None:
        time.sleep(0.02)
        raise problem

    with pytest.raises(ValueError, match="mine") as caught:
        pair.run([waits, fails])
    assert caught.value is problem
    assert caught.value.__notes__ == ["on rank 1 (cpu)"]
    assert any(entry.name == "fails" for entry in caught.traceback)
    assert isinstance(seen[0], RankAborted)
    check_usable(pair)


def test_a_failure_names_its_node(pair: Runtime) -> None:
    modules = [module(pair, 0, torch.neg), module(pair, 1, fail)]
    x = torch.ones(2)
    with pytest.raises(ValueError) as caught:
        pair.run([lambda: modules[0](x), lambda: modules[1](x)])
    assert caught.value.__notes__ == ["on rank 1 (cpu), in node before"]
    check_usable(pair)


def test_a_disagreement_names_its_node(pair: Runtime) -> None:
    modules = [module(pair, 0, torch.neg), module(pair, 1, torch.Tensor.long)]
    x = torch.ones(2)
    with pytest.raises(CollectiveError, match=r"f32\[2\]\)\n.*i64\[2\]") as caught:
        pair.run([lambda: modules[0](x), lambda: modules[1](x)])
    assert "in node together" in caught.value.__notes__[0]
    check_usable(pair)


def test_first_of_two_failures_wins(pair: Runtime) -> None:
    def late() -> None:
        time.sleep(0.05)
        raise KeyError("second")

    def early() -> None:
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        pair.run([late, early])
    check_usable(pair)


def test_a_rank_that_never_arrives(pair: Runtime) -> None:
    with pytest.raises(CollectiveTimeout) as caught:
        pair.run([lambda: reduce_ones(pair, 0), lambda: None])
    message = str(caught.value)
    assert message.startswith("rank 1 of 2 did not arrive in all_reduce(sum, f32[2]) within 0.3 s; rank 0 w")
    assert "rank 1 (cpu): its call has returned" in message
    assert isinstance(caught.value, TimeoutError)
    check_usable(pair)


def test_a_rank_that_is_stuck_is_given_up(pair: Runtime) -> None:
    release = threading.Event()
    threads: list[threading.Thread] = []

    def stuck(x: Tensor) -> Tensor:
        threads.append(threading.current_thread())
        release.wait(200)
        return x

    modules = [module(pair, 0, torch.neg), module(pair, 1, stuck)]
    x = torch.ones(2)
    with pytest.raises(CollectiveTimeout) as caught:
        pair.run([lambda: modules[0](x), lambda: modules[1](x)])
    assert threads[0].is_alive()
    assert "all_reduce(sum, f32[2]) (in node together)" in str(caught.value)
    assert "rank 1 (cpu): in node before" in str(caught.value)
    assert any("given up" in note for note in caught.value.__notes__)
    check_usable(pair)
    # When the thread comes back after all, it ends without meeting the others.
    release.set()
    threads[0].join(2)
    assert not threads[0].is_alive()
    check_usable(pair)


def test_stuck_outside_generated_code_is_located_by_file_and_line(pair: Runtime) -> None:
    def slow() -> None:
        time.sleep(0.5)

    with pytest.raises(CollectiveTimeout, match=r"test_thread_runtime\.py:\d+, in slow"):
        pair.run([lambda: reduce_ones(pair, 0), slow])
    check_usable(pair)


def test_keyboard_interrupt() -> None:
    pair = Runtime(Mesh((CPU, CPU)), timeout=10.0)  # a busy machine may take its time to deliver the signal

    def interrupt() -> None:
        main = threading.main_thread().ident
        assert main is not None
        time.sleep(0.1)  # a signal just before the main thread waits would be seen only after its wait
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.05)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts tests may have it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            pair.run([lambda: reduce_ones(pair, 0), interrupt])
    finally:
        signal.signal(signal.SIGINT, before)
    check_usable(pair)
    pair.close()


def test_misuse(pair: Runtime) -> None:
    with pytest.raises(TpfxError, match="1 calls for 2 ranks"):
        pair.run([lambda: None])
    with pytest.raises(TpfxError, match="inside a rank's thread"):
        pair.run([lambda: pair.run([lambda: None] * 2), lambda: None])
    with pytest.raises(TpfxError, match="timeout=0"):
        Runtime(Mesh((CPU,)), timeout=0)
    check_usable(pair)
    pair.close()
    pair.close()
    with pytest.raises(TpfxError, match="closed"):
        pair.run([lambda: None] * 2)


def test_two_callers_take_turns() -> None:
    runtime = Runtime(Mesh((CPU, CPU)), timeout=5.0)

    def many() -> None:
        for _ in range(50):
            check_usable(runtime)

    threads = [threading.Thread(target=many) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    runtime.close()


def test_threads_end_with_the_runtime() -> None:
    before = set(rank_threads())
    runtime = Runtime(Mesh((CPU, CPU)))
    check_usable(runtime)
    started = set(rank_threads()) - before
    assert len(started) == 2
    alive = weakref.ref(runtime)
    del runtime
    gc.collect()
    assert alive() is None
    for thread in started:
        thread.join(2)
        assert not thread.is_alive()


def test_results_and_arguments_are_not_kept(pair: Runtime) -> None:
    x = torch.ones(2)
    alive = weakref.ref(x)
    pair.run([lambda x=x: x + 1, lambda: None])  # type: ignore[misc]
    del x
    time.sleep(0.05)
    assert alive() is None


def test_threads_do_not_keep_the_interpreter() -> None:
    code = (
        "import torch; from tpfx.runtime.mesh import Mesh; from tpfx.runtime.thread_runtime import Runtime\n"
        "runtime = Runtime(Mesh((torch.device('cpu'),) * 2)); print(runtime.run([lambda: 1, lambda: 2]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[1, 2]\n")


def test_a_thread_that_comes_back_as_the_process_ends_does_not_abort_it() -> None:
    code = """if True:
        import threading, time, torch
        from tpfx.native.build import load

        seat = load().Seat()

        class Late:  # wakes the thread when the interpreter has begun to end, and lets it have Python's lock
            def __del__(self, wake=seat.wake, sleep=time.sleep):
                wake()
                sleep(0.3)

        late = Late()
        threading.Thread(target=seat.wait, daemon=True).start()
        time.sleep(0.3)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_node_of_lines_of_generated_code() -> None:
    match = thread_runtime._ASSIGNMENT.match
    for line, name in {
        "    add = torch.ops.aten.add(x, y == z);  x = None": "add",
        '    mul_1: "f32[2, s0 = 3]" = torch.mul(a, b)': "mul_1",
        "    sub : torch.Tensor = torch.sub(a, b)": "sub",
        "    return (add, x == y)": None,
    }.items():
        found = match(line)
        assert (found[1] if found else None) == name
    assert node_of(None) is None
    assert node_of(sys._getframe()) is None
