"""Collectives between processes of one host, through memory that they share: as those of a process group."""

from __future__ import annotations

import pytest
import torch

from tests.support.launches import Launched
from tests.support.processes import launch


def test_as_the_process_groups(two_processes: Launched) -> None:
    for found in two_processes.results("meeting"):
        assert found
        for mine, theirs in found:
            torch.testing.assert_close(mine, theirs.to(mine.dtype), rtol=0, atol=0)


def test_who_leaves_is_missed_at_once(two_processes: Launched) -> None:
    """Of a failure, and of calls that differ, the ranks recover; of one that is late they do not."""
    zero, one = two_processes.results("leaving")
    assert (
        zero[0]
        == "RankAborted: rank 0 was released from all_reduce_default: rank 1 (cpu) failed there or before"
    )
    assert one[0] == "ValueError: no"
    assert zero[2] == one[2] and zero[2].startswith("CollectiveError: the ranks disagree about a collective:")
    assert "rank 1: all_reduce(sum, f32[3])" in zero[2]
    assert zero[1] == one[1] == zero[3] == one[3] == "[2.0, 2.0]"
    assert zero[4].startswith(
        "CollectiveTimeout: rank 1 (cpu) of 2 did not arrive in all_reduce_default within 3 s"
    )
    assert one[4].startswith("RankAborted") and zero[5].startswith("RankAborted")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_rounds_with_ranks_that_leave() -> None:
    launch(2, "-m", "tests.support.leaving", "10000")
