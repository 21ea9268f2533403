from __future__ import annotations

import pytest
import torch
from torch.fx import symbolic_trace

from tpfx.kernels.scores import attention_shard, in_the_whole


@pytest.mark.parametrize(
    ("owned", "whole"),
    [((), [0, 1]), (((0, 3),), [0, 1, 2]), (((2, 4),), [2, 3]), (((1, 3), (5, 6), (8, 10)), [1, 2, 5, 8, 9])],
)
def test_an_index_of_what_is_owned_is_that_of_the_whole(
    owned: tuple[tuple[int, int], ...], whole: list[int]
) -> None:
    assert in_the_whole(torch.arange(len(whole)), owned).tolist() == whole


def test_functions_are_told_of_the_whole_where_it_is_divided() -> None:
    score = symbolic_trace(lambda score, example, head, row, column: (score, example, head))
    mask = symbolic_trace(lambda example, head, row, column: (example, head))

    def attention(score_mod, block_mask, score_mod_other_buffers):  # type: ignore[no-untyped-def]
        zero = torch.zeros((), dtype=torch.int64)
        asked = [buffer.requires_grad for buffer in score_mod_other_buffers]
        return score_mod(zero, zero, zero, zero, zero), block_mask[-1](zero, zero, zero, zero), asked

    names = "score_mod", "block_mask", "score_mod_other_buffers"
    given = score, (8, mask), (torch.ones(2), torch.ones(2))
    scores, masks, asked = attention_shard(attention, names, ((), ((4, 6),)), (True, False), *given)
    assert [list(map(int, made)) for made in (scores, masks)] == [[0, 0, 4], [0, 4]]
    assert asked == [True, False]
    assert int(score(*torch.zeros(5, dtype=torch.int64))[2]) == 0  # another rank's is as it was
