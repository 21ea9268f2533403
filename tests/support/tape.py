"""What CUDA graphs are on a GPU, on the CPU: the ops that ranks call are written down, and called again.

A tape minds what a capture minds: nothing runs while it is made, no value is read by the host, a replay reads
and writes the memory that the recording did, and the ranks' collectives come in one order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tpfx.errors import RecordingError
from tpfx.execution.cuda_graphs import Results
from tpfx.runtime.mesh import Mesh
from tpfx.runtime.thread_runtime import runtime_of

_READ_BY_THE_HOST = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _memory(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr()


class _Rank(TorchDispatchMode):
    """The ops of one rank."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.made: set[int] = set()  # memory that the recording has allocated
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []  # what was written to, as it was

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(tag in func.tags for tag in _READ_BY_THE_HOST):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        given = list(_tensors((args, kwargs)))
        if func._schema.is_mutable:
            self.before += [(one, one.clone()) for one in given if _memory(one) not in self.made]
        out = func(*args, **kwargs)
        self.made |= {_memory(one) for one in _tensors(out)} - {_memory(one) for one in given}
        self.calls.append((func, args, kwargs, out))
        return out

    def undo(self) -> None:
        """A capture runs nothing: what was there before is as it was, and nothing of it has been computed."""
        for value, was in reversed(self.before):
            value.copy_(was)
        for *_, out in self.calls:
            for one in _tensors(out):
                if _memory(one) in self.made and one.is_floating_point():
                    one.fill_(torch.nan)

    def replay(self, inference: bool) -> None:
        """Call the ops again; what one returns goes to where it was the first time."""
        with torch.inference_mode(inference):
            for func, args, kwargs, out in self.calls:
                given = {_memory(one) for one in _tensors((args, kwargs))}
                for old, new in zip(_tensors(out), _tensors(func(*args, **kwargs)), strict=True):
                    if _memory(old) not in given:
                        old.copy_(new)

    @property
    def collectives(self) -> list[str]:
        """Which collectives the rank called, in order."""
        return [str(func) for func, *_ in self.calls if "c10d" in str(func) and "wait" not in str(func)]


def on_ranks(mesh: Mesh, calls: list[Callable[[], Any]]) -> None:
    """Run calls where the ranks of this process run: each in its thread, or here."""
    runtime = runtime_of(mesh)
    if runtime is not None:
        with torch.inference_mode(False):  # at its end a thread would forget the mode that it has entered
            runtime.run(calls)
    else:
        for call in calls:
            call()


class Tape:
    """A recording."""

    def __init__(self, mesh: Mesh, ranks: list[_Rank], results: Results) -> None:
        self._mesh, self._ranks, self.results = mesh, ranks, results
        self.replays = 0

    def replay(self) -> None:
        """Run it again."""
        self.replays += 1
        on_ranks(
            self._mesh, [partial(rank.replay, torch.is_inference_mode_enabled()) for rank in self._ranks]
        )

    @property
    def collectives(self) -> list[str]:
        """Which collectives each rank calls, in order."""
        return self._ranks[0].collectives

    def reads(self, value: torch.Tensor) -> bool:
        """Whether an op of the recording takes what lies in the memory of a tensor."""
        given = (one for rank in self._ranks for _, args, *_ in rank.calls for one in _tensors(args))
        return any(_memory(one) == _memory(value) for one in given)


class Tapes:
    """Makes recordings of what the ranks of a mesh run, op by op from Python."""

    def __init__(self, mesh: Mesh, several: bool = False) -> None:
        self.mesh, self.made, self.free, self.several = mesh, list[Tape](), True, several

    def is_free(self) -> bool:
        """Whether nobody else records."""
        return self.free

    def in_order(self) -> AbstractContextManager[None]:
        """There are no streams."""
        return nullcontext()

    def record(self, run: Callable[[], Results]) -> Tape:
        """Write down what the ranks call."""
        ranks = [_Rank() for _ in self.mesh.owned]
        on_ranks(self.mesh, [rank.__enter__ for rank in ranks])
        try:
            results = run()
        except RuntimeError as error:
            raise RecordingError(str(error)) from error
        finally:
            on_ranks(self.mesh, [partial(rank.__exit__, None, None, None) for rank in ranks])
        assert all(rank.calls for rank in ranks), "the ranks' ops are not called from Python"
        with torch.inference_mode():  # which may write into what was made in it
            for rank in ranks:
                rank.undo()
        assert all(rank.collectives == ranks[0].collectives for rank in ranks)
        self.made.append(Tape(self.mesh, ranks, results))
        return self.made[-1]

    @property
    def replays(self) -> int:
        """How often recordings have been replayed."""
        return sum(tape.replays for tape in self.made)
