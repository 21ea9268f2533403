"""Runs that are recorded once and replayed: on a GPU as a CUDA graph, which is launched as one.

recording = recorder.record(run)     # what `run` starts on the device is written down, and does not run
recording.replay()                   # now it runs: with what is in the tensors that were read
recording.results                    # what `run` returned: tensors that every replay fills anew
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from ..errors import RecordingError
from ..runtime.mesh import Mesh
from ..torch_internals.inductor import end_failed_capture, own_cublas_workspaces

Results = Sequence[Sequence[Any]]  # of each rank, those of its graph

# A capture waits for the whole device first, which may not have another under way: of another model, say.
_CAPTURING = threading.Lock()


class Recording(Protocol):
    """A run that can be repeated, reading and writing the memory that it was recorded with."""

    results: Results

    def replay(self) -> None:
        """Run it, on the caller's stream."""


class Recorder(Protocol):
    """What makes recordings.

    Attributes:
        several: whether it makes one with other processes, which must all come to the same decisions.
    """

    several: bool

    def record(self, run: Callable[[], Results]) -> Recording:
        """Record what the ranks of `run` do.

        Raises:
            RecordingError: something in it cannot be recorded; nothing has run.
        """

    def is_free(self) -> bool:
        """Whether a run may be recorded or replayed now: not while the caller records for himself."""

    def in_order(self) -> AbstractContextManager[None]:
        """What is started inside runs after what was started so before, whatever streams the callers have."""


def recorder_for(mesh: Mesh) -> Recorder | str:
    """What records the runs of all ranks of a mesh, or why nothing does."""
    if any(device.type != "cuda" for device in mesh.devices):
        return f"{mesh.devices[0].type} devices run no CUDA graphs"
    if len(mesh.gpus) > 1 or (mesh.group is not None and not mesh.rank_is_process):
        return "several ranks of one process, on several GPUs or of several processes"
    return CudaGraphs(mesh.gpus[0], mesh.group)


class CudaGraphs:
    """Records what ranks run on one GPU, each on its stream, with their collectives: copies on the device.

    One graph holds the work of all ranks, whose streams wait for each other inside of it as they do outside.
    All graphs take their memory from one pool: one of them runs at a time, and what it returns is copied
    before another does.

    Of processes each records its own rank, NCCL's part in collectives included, or none does.

    Args:
        gpu: the device.
        group: the processes, if ranks are processes.
    """

    def __init__(self, gpu: torch.device, group: ProcessGroup | None = None) -> None:
        self.several, self._group = group is not None, group
        self._gpu, self._pool = gpu, torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(gpu)
        self._last, self._done = torch.cuda.current_stream(gpu), torch.cuda.Event()

    def is_free(self) -> bool:
        """Whether the caller's stream is not being captured."""
        return not torch.cuda.is_current_stream_capturing()

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """Have the caller's stream wait for that of the caller before, if it is another."""
        stream = torch.cuda.current_stream(self._gpu)
        if stream != self._last:
            stream.wait_event(self._done)
        try:
            yield
        finally:
            self._last = stream
            self._done.record(stream)

    def record(self, run: Callable[[], Results]) -> CudaGraph:
        """Capture what the ranks start, on streams that wait for this one."""
        with _CAPTURING:
            return self._capture(run)

    def _capture(self, run: Callable[[], Results]) -> CudaGraph:
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._gpu)
        # Rank threads allocate and look at events meanwhile, which other modes forbid.
        capture = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="relaxed")
        try:
            with own_cublas_workspaces(), torch.cuda.device(self._gpu), capture:
                results = run()
        except BaseException as error:
            torch.cuda.set_stream(before)
            self._clean_up()
            for one in (error, error.__context__):  # the end of the capture may have failed in turn
                if not isinstance(one, Exception | None):  # KeyboardInterrupt, for one
                    raise one from None
            all_have_recorded(self._group, False)
            raise RecordingError(f"{type(error).__name__}: {error}") from error
        if not all_have_recorded(self._group, True):
            raise RecordingError("another process could not")
        return CudaGraph(graph, results)

    def _clean_up(self) -> None:
        """After a capture that failed, have allocator and generators as after one that ended well."""
        end_failed_capture(self._gpu, self._pool)
        with torch.cuda.device(self._gpu), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self._stream):
            torch.zeros(1, device=self._gpu)


def all_have_recorded(group: ProcessGroup | None, this: bool) -> bool:
    """Whether no process of a group has failed: a collective is recorded by all of them, or by none."""
    if group is None:
        return this
    found = [this] * group.size()
    dist.all_gather_object(found, this, group)
    return all(found)


class CudaGraph:
    """A recording on a GPU."""

    def __init__(self, graph: torch.cuda.CUDAGraph, results: Results) -> None:
        self._graph, self.results = graph, results

    def replay(self) -> None:
        """Launch it on the current stream."""
        self._graph.replay()
