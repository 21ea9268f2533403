"""Tensors handed to another process and back, by where they lie in memory that both have mapped."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch

from tpfx.native.build import load
from tpfx.workers.value_text import read_value, write_value

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the memory is Linux's")

REGION = 128 << 20


class Pair:
    """Both sides in one process: each has mapped the memory for itself."""

    def __init__(self) -> None:
        self.native = load()
        file = os.memfd_create("test")
        os.ftruncate(file, 2 * REGION)
        self.caller, self.rank = (
            self.native.Arena(file=file, size=2 * REGION, begin=at * REGION, end=(at + 1) * REGION)
            for at in range(2)
        )
        os.close(file)
        self.leases, self.lent = self.native.Leases(), self.native.Lent()
        self.desk = self.native.Desk(self.rank)

    def send(self, row: tuple[Any, ...], shared: tuple[Any, ...] | None = None) -> tuple[Any, Any]:
        sent = self.native.Sent(self.caller, [row], shared or (None,) * len(row), write_value)
        return sent, self.desk.unpack(*sent.places()[0], read_value)

    def answer(self, sent: Any, results: list[Any]) -> list[Any]:
        place = self.desk.pack(results, self.lent, write_value)
        found: list[Any] = sent.unpack(0, *place, self.leases, read_value)
        return found


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_values_arrive_as_they_are(pair: Pair) -> None:
    dense = torch.arange(24.0).view(4, 6)
    row = (
        dense.clone().t()[1:3],
        torch.ones(3).expand(5, 3),
        torch.empty(0, 4, dtype=torch.int64),
        torch.tensor([1 + 2j, 3 - 1j]).conj(),
        torch.tensor([1 + 2j, 3 - 1j]).conj().imag,
        torch.ones(2, dtype=torch.bfloat16),
        torch.eye(3).to_sparse(),
        *(7, 1 << 80, 2.5, True, None, "x"),
    )
    expected = [read_value(write_value(value)) for value in row]
    _, found = pair.send(row)
    for mine, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, torch.Tensor):
            assert mine.dtype == theirs.dtype and mine.layout == theirs.layout
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        else:
            assert mine == theirs and type(mine) is type(theirs)
    assert found[0].stride() == row[0].stride() and found[3].is_conj() and found[4].is_neg()


def test_a_ranks_own_memory_is_moved_and_what_all_have_is_copied(pair: Pair) -> None:
    own, common = torch.zeros(4), torch.zeros(4)
    view = own[2:]
    _, (mine, copy) = pair.send((view, common), (None, common))
    mine.add_(1)
    copy.add_(1)
    assert own.tolist() == [0, 0, 1, 1] and common.tolist() == [0] * 4
    assert pair.caller.has(own) and not pair.caller.has(common)
    own.add_(1)
    assert mine.tolist() == [2, 2]


def test_what_did_not_change_is_the_same_object(pair: Pair) -> None:
    weight, number = torch.ones(2), 3
    _, first = pair.send((weight, number, torch.ones(1)))
    _, second = pair.send((weight, number, torch.ones(1)))
    assert first[0] is second[0] and second[1:] == (3, torch.ones(1))


def test_results_share_memory_as_the_ranks_do(pair: Pair) -> None:
    given, common = torch.zeros(4), torch.arange(3.0)
    sent, (argument, whole) = pair.send((given, common), (None, common))
    made = torch.arange(6.0)
    pair.native.Sent(pair.rank, [(made,)], (None,), write_value)  # moves it into the rank's region
    results = [argument.view(2, 2)[1], whole[1:], made, made.view(2, 3).t(), torch.empty(0, 2), 5, None]
    found = pair.answer(sent, results)
    for mine, theirs in zip(found[:5], results[:5], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert found[5:] == [5, None] and found[3].stride() == (1, 3)
    found[2].mul_(2)
    assert found[3][2, 1] == 10 == made[5]
    found[0].add_(1)
    assert given.tolist() == [0, 0, 1, 1] and common.tolist() == [0, 1, 2]


def test_a_result_is_kept_until_the_caller_has_let_go_of_it(pair: Pair) -> None:
    sent, _ = pair.send(())
    found = pair.answer(sent, [torch.ones(4), torch.ones(5)])
    view = found[0][1:]
    del found
    assert len(pair.lent) == 2
    pair.lent.take_back(pair.leases.take_ended())
    assert len(pair.lent) == 1 and view.tolist() == [1] * 3
    del view
    pair.lent.take_back(pair.leases.take_ended())
    assert len(pair.lent) == 0 and pair.leases.take_ended() == []


def test_memory_is_used_again_and_its_end_is_an_error(pair: Pair) -> None:
    for size in (1000, 40 << 20):
        for _ in range(5):
            pair.send((torch.ones(size, dtype=torch.uint8),))
    with pytest.raises(torch.OutOfMemoryError, match="of shared memory"):
        pair.send((torch.empty(REGION, dtype=torch.uint8),))
