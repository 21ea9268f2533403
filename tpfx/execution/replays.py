"""The recordings of one graph's runs, which are replayed where a run is the same but for what tensors hold.

A run is the same as another if its sizes, its numbers, and the memory of weights and state are. What else it
reads is copied to where the recording reads it, and what it returns is copied out of the recording: the
caller's tensors are his own, as ever.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import RecordingError
from .cuda_graphs import Recorder, Recording, Results
from .ranks import Columns, Ranks

Key = tuple[Any, ...]

# Runs of one graph that are told apart, and those of them whose recordings are kept.
REMEMBERED, KEPT = 64, 8


@dataclass(frozen=True)
class Recorded:
    """A recording, by argument the weights that it reads, and its own copies of what is no weight or state.

    A copy is by argument and rank; those that were written are copied back. State is known by address alone:
    nothing is kept that the caller lets go. `joined`: of each rank, whether results share memory.
    """

    recording: Recording
    weights: dict[int, Sequence[Any]]
    copies: dict[tuple[int, int], torch.Tensor]
    written: dict[tuple[int, int], torch.Tensor]
    joined: list[bool]


class Replays:
    """Runs one graph: the first time as it is, the second time by making a recording, and then by that.

    Args:
        recorder: what records.
        note: is told of each recording, or why there will be none.
        ranks: run the graph, given the columns of its arguments, which they empty.
        weights: the arguments that are weights; they lie where they lay, as long as the column is the same.
        written: the arguments that the graph writes into.
    """

    def __init__(
        self,
        recorder: Recorder,
        note: Callable[[str | None], None],
        ranks: Ranks,
        weights: Collection[int],
        written: Collection[int],
    ) -> None:
        self._recorder, self._note, self._ranks = recorder, note, ranks
        self._weights, self._written = frozenset(weights), frozenset(written)
        self._seen: dict[Key, None] = {}
        self._kept: OrderedDict[Key, Recorded] = OrderedDict()
        self._place_of = _Serials() if recorder.several else torch.Tensor.data_ptr
        self._places: dict[int, list[int]] = {}  # of state that is read only, where it lay the last time
        self._moving: set[int] = set()  # state that lies elsewhere each time
        self._strange = 0  # runs of new kinds since a recording was last of use
        self._wasted = 0  # and recordings
        self._gave_up = False

    def __call__(self, columns: Columns, state: Mapping[int, int]) -> Results:
        """The results of every rank.

        Args:
            columns: of each argument, a value for each rank.
            state: of arguments that lie where they may lie in the next run, of how many ranks, from the first
                on, this is so.
        """
        if self._gave_up or not self._recorder.is_free():
            return self._ranks.run(columns)
        # Threads may call at once: a recording has one place for what is read, and for what is returned.
        with self._ranks.runtime.alone(), self._recorder.in_order():
            known = self._known(columns, state)
            return self._ranks.run(columns) if known is None else self._replay(known, columns)

    def _known(self, columns: Columns, state: Mapping[int, int]) -> Recorded | None:
        """The recording that does for a run, if there is one, or can be now."""
        fixed = self._fixed(columns, state)
        key = self._key(columns, fixed)
        known = self._kept.get(key)
        if known is not None and all(columns[at] is column for at, column in known.weights.items()):
            self._wasted = self._strange = 0
            self._kept.move_to_end(key)
            return known
        return None if self._is_new(key) else self._recorded(key, columns, fixed)

    def _fixed(self, columns: Columns, state: Mapping[int, int]) -> Mapping[int, int]:
        """The state that a recording may read where it lies: what is written to, and what has not moved."""
        for at in state:
            if at not in self._written and at not in self._moving:
                places = list(map(self._place_of, columns[at]))
                if self._places.setdefault(at, places) != places:
                    self._moving.add(at)
        return {at: ranks for at, ranks in state.items() if at not in self._moving}

    def _key(self, columns: Columns, fixed: Mapping[int, int]) -> Key:
        """What two runs that one recording does for have alike, but for weights."""
        found: list[Any] = [torch.is_inference_mode_enabled()]
        for at, column in enumerate(columns):
            if at in self._weights:
                continue
            ranks = fixed.get(at, 0)
            for rank, value in enumerate(column):
                if isinstance(value, torch.Tensor):
                    where = self._place_of(value) if rank < ranks else None
                    found += value.shape, value.stride(), value.dtype, where
                else:
                    found += type(value), value
        return tuple(found)

    def _is_new(self, key: Key) -> bool:
        """Whether a run is the first of its kind, as far as is remembered."""
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        self._strange += 1
        if self._strange == REMEMBERED:
            self._give_up("its sizes, or where its state lies, are others each time")
        return True

    def _recorded(self, key: Key, columns: Columns, fixed: Mapping[int, int]) -> Recorded | None:
        """A new recording; None where there can be none, of this run or of any."""
        if self._wasted == KEPT:
            self._give_up("its weights, or its state, lie elsewhere each time")
            return None
        copies = {
            (at, rank): _like(value)
            for at, column in enumerate(columns)
            for rank, value in enumerate(() if at in self._weights else column)
            if rank >= fixed.get(at, 0) and isinstance(value, torch.Tensor)
        }
        given: Columns = [
            [copies.get((at, rank), value) for rank, value in enumerate(column)]
            for at, column in enumerate(columns)
        ]
        try:
            recording = self._recorder.record(lambda: self._ranks.run(given))
        except RecordingError as error:
            self._give_up(str(error))
            return None
        self._wasted += 1
        self._kept.pop(key, None)
        # Where the first rank has written into what is the caller's, he reads no other rank's.
        written = {one: copy for one, copy in copies.items() if one[0] in self._written - fixed.keys()}
        weights = {at: columns[at] for at in self._weights}
        joined = list(map(_share_memory, recording.results))
        known = self._kept[key] = Recorded(recording, weights, copies, written, joined)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        self._note(None)
        return known

    def _give_up(self, why: str) -> None:
        self._gave_up = True
        self._seen.clear()
        self._kept.clear()
        self._note(why)

    def _replay(self, known: Recorded, columns: Columns) -> Results:
        for (at, rank), copy in known.copies.items():
            _memory(copy).copy_(_memory(columns[at][rank]))
        known.recording.replay()
        for (at, rank), copy in known.written.items():
            _memory(columns[at][rank]).copy_(_memory(copy))
        return list(map(_taken, known.recording.results, known.joined))


class _Serials:
    """Where tensors lie, as numbers on which processes agree that do the same: their allocators do not."""

    def __init__(self) -> None:
        self._known, self._numbers = WeakIdKeyDictionary(), count()

    def __call__(self, value: torch.Tensor) -> int:
        known, place = self._known.get(value), value.data_ptr()
        if known is None or known[0] != place:
            known = self._known[value] = place, next(self._numbers)
        serial: int = known[1]
        return serial


def _like(value: torch.Tensor) -> torch.Tensor:
    """A copy of the same strides."""
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    _memory(copy).copy_(_memory(value))
    return copy


def _memory(value: torch.Tensor) -> torch.Tensor:
    """What a tensor lies in, once: of one that repeats itself, no element is written twice."""
    once = [slice(0, 1) if not stride else slice(None) for stride in value.stride()]
    return value[tuple(once)] if 0 in value.stride() else value


def _share_memory(results: Sequence[Any]) -> bool:
    places = [
        one.untyped_storage().data_ptr() for one in results if isinstance(one, torch.Tensor) and one.numel()
    ]
    return len(set(places)) < len(places)


def _taken(results: Sequence[Any], joined: bool) -> list[Any]:
    """A rank's results for the caller: the next replay writes over the recording's."""
    if not joined:
        return [one.clone() if isinstance(one, torch.Tensor) else one for one in results]
    tensors = [one for one in results if isinstance(one, torch.Tensor)]
    memory = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in tensors}
    taken = {place: storage.clone() for place, storage in memory.items()}
    return [_on_memory(taken, one) if isinstance(one, torch.Tensor) else one for one in results]


def _on_memory(taken: Mapping[int, torch.UntypedStorage], one: torch.Tensor) -> torch.Tensor:
    """What a tensor is on a copy of its memory, where it lies on that as it is."""
    if one.is_conj() or one.is_neg():
        return one.clone()
    storage = taken[one.untyped_storage().data_ptr()]
    return one.new_empty(0).set_(storage, one.storage_offset(), one.shape, one.stride())
