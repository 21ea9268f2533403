"""What records runs, and recordings on a GPU; when there are some is what `test_replays.py` is about."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

import tpfx
from tests.support.launches import Launched
from tests.support.models import inputs, tiny
from tpfx.errors import RecordingError
from tpfx.execution.cuda_graphs import CudaGraphs, recorder_for
from tpfx.runtime.mesh import Mesh


def test_where_nothing_records() -> None:
    cuda = tuple(torch.device("cuda", at) for at in range(2))
    assert "several ranks of one process" in str(recorder_for(Mesh(cuda)))
    assert "several ranks of one process" in str(
        recorder_for(Mesh(cuda * 2, (0, 1), group=object(), shares=(2, 2)))
    )
    assert recorder_for(Mesh((torch.device("cpu"),) * 2)) == "cpu devices run no CUDA graphs"


class Stream:
    """What is waited for, and recorded, on it."""

    def __init__(self, *device: object) -> None:
        self.waited: list[Event] = []

    def wait_event(self, event: Event) -> None:
        self.waited.append(event)


class Event:
    """Of torch.cuda: the stream on which it was recorded last."""

    stream: Stream | None = None

    def record(self, stream: Stream) -> None:
        self.stream = stream


@contextmanager
def unjoined(*args: Any, **kwargs: Any) -> Iterator[None]:
    """A capture that cannot end well, as work that it waits for is not done."""
    try:
        yield
    finally:
        raise RuntimeError("capture_end: unjoined work")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CudaGraphs:
    """On a GPU that is not there; `torch.cuda.current_stream()` is what a test sets."""
    stream = Stream()
    fakes: dict[str, Any] = {
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda gpu: stream,
        "set_stream": lambda stream: None,
        "graph_pool_handle": lambda: (0, 1),
        "CUDAGraph": object,
        "graph": unjoined,
        "device": nullcontext,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(CudaGraphs, "_clean_up", lambda self: None)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
    return CudaGraphs(torch.device("cuda:0"))


def test_another_stream_waits_for_the_one_before(graphs: CudaGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Stream(), Stream()
    for at in (0, 0, 1, 1, 0):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda gpu, at=at: streams[at])
        with graphs.in_order():
            pass
    assert [len(stream.waited) for stream in streams] == [2, 1]  # at first, and where they change


def test_what_fails_while_it_is_recorded(graphs: CudaGraphs) -> None:
    """The end of the capture fails too, which must not hide that Ctrl-C was pressed."""

    def run(error: BaseException) -> Any:
        raise error

    with pytest.raises(RecordingError, match="unjoined"):
        graphs.record(lambda: run(ValueError("rank")))
    with pytest.raises(KeyboardInterrupt):
        graphs.record(lambda: run(KeyboardInterrupt()))


def test_one_capture_goes_at_a_time(graphs: CudaGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two models, in two threads."""
    monkeypatch.setattr(torch.cuda, "graph", lambda *args, **kwargs: nullcontext())
    other, inside, met = CudaGraphs(torch.device("cuda:0")), threading.Event(), list[bool]()
    second = threading.Thread(target=lambda: other.record(lambda: inside.set() or []))

    def run() -> Any:
        second.start()
        met.append(inside.wait(0.2))
        return []

    graphs.record(run)
    second.join()
    assert met == [False] and inside.is_set()


@pytest.mark.cuda
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("device_compiler", ["native", "eager"])
def test_tokens_are_those_of_the_unsharded_model(ranks: int, device_compiler: str) -> None:
    plain = tiny("llama", num_hidden_layers=2).to("cuda:0")
    split: Any = tpfx.compile(
        copy.deepcopy(plain), ["cuda:0"] * ranks, mode="reduce-overhead", device_compiler=device_compiler
    )
    assert isinstance(recorder_for(Mesh((torch.device("cuda:0"),) * ranks)), CudaGraphs)
    given = {name: value.to("cuda:0") for name, value in inputs(plain).items()}
    for wanted in ({}, {"num_beams": 2}):
        arguments = {"max_new_tokens": 12, "min_new_tokens": 12, "disable_compile": True, **wanted}
        arguments["cache_implementation"] = "static"
        for _ in range(2):
            assert torch.equal(split.generate(**given, **arguments), plain.generate(**given, **arguments))
    report = tpfx.report(split)
    assert report.recordings > 0, report.not_recorded


@pytest.mark.cuda
def test_who_clears_the_workspaces_of_products_takes_none_from_a_recording() -> None:
    weight, x = (torch.randn(4096, 4096, device="cuda:0", dtype=torch.bfloat16) for _ in range(2))
    graphs, stream = CudaGraphs(torch.device("cuda:0")), torch.cuda.Stream()

    def run() -> list[list[torch.Tensor]]:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = x[:1] @ weight
        torch.cuda.current_stream().wait_stream(stream)
        return [[found]]

    right = run()[0][0].clone()
    recording = graphs.record(run)
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    with torch.cuda.stream(stream):  # what is given the memory that has come free
        others = [torch.zeros(1 << 22, dtype=torch.uint8, device="cuda:0") for _ in range(16)]
    torch.cuda.synchronize()
    recording.replay()
    assert torch.equal(recording.results[0][0], right)
    assert not any(other.any() for other in others)


@pytest.mark.cuda
def test_callers_on_several_streams() -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(512, 4096), torch.nn.Linear(4096, 512)).to("cuda:0")
    split = tpfx.compile(copy.deepcopy(plain), ["cuda:0"] * 2, mode="reduce-overhead")
    streams, pairs = [torch.cuda.Stream() for _ in range(3)], []
    x = torch.randn(40, 256, 512, device="cuda:0")
    torch.cuda.synchronize()
    with torch.no_grad():
        for at, one in enumerate(x):
            with torch.cuda.stream(streams[at % 3]):
                pairs.append((split(one), plain(one)))
        torch.cuda.synchronize()
    for found, right in pairs:
        torch.testing.assert_close(found, right, atol=1e-3, rtol=1e-3)


def test_processes_record_and_replay_the_same_runs(two_processes: Launched) -> None:
    zero, one = two_processes.results("recorded")
    assert zero[:2] == one[:2]
    replays, collectives, _ = zero
    assert sum(replays) >= 3 and all(collectives)
