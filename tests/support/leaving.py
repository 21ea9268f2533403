"""Rounds of collectives, of which some ranks leave at random: each ends, with the result or an error on all.

python -m tests.support.leaving ROUNDS     # RANK 0 or 1 of two processes; fails where a round goes wrong
"""

from __future__ import annotations

import random
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.fx import Graph, GraphModule

from tpfx.errors import RankAborted
from tpfx.native.rank_program import RankProgram
from tpfx.runtime.mesh import Mesh
from tpfx.runtime.process_runtime import ProcessRuntime
from tpfx.runtime.processes import world_mesh

aten, c10d = torch.ops.aten, torch.ops._c10d_functional
PLACES, WIDTH = 4, 4096
MOST_GROWTH = 64 << 10  # KiB; one tensor that a round left behind would be 160 MiB


def program(mesh: Mesh, rank: int, meeting: Any) -> RankProgram:
    """Eight collectives of `x: [ranks, WIDTH]`; at four places a rank fails if the index is no row."""
    graph, group = Graph(), mesh.group_name(rank)
    value, *places = (graph.placeholder(name) for name in ("x", "a", "b", "c", "d"))
    for place in places:
        row = graph.call_function(aten.index_select.default, (value, 0, place))
        for op, args in (
            (c10d.all_gather_into_tensor.default, (mesh.size, group)),
            (c10d.all_reduce_.default, ("avg", group)),
        ):
            row = graph.call_function(c10d.wait_tensor.default, (graph.call_function(op, (row, *args)),))
        value = row
    graph.output((value,))
    return RankProgram(GraphModule({}, graph), rank, meeting)


def drawn(ranks: int, rounds: int) -> Iterator[tuple[int, dict[int, int]]]:
    """Of each round its number, and which ranks leave at which place: the same in all processes."""
    chance = random.Random(0)
    for number in range(rounds):
        leaving = {rank: chance.randrange(PLACES) for rank in range(ranks) if chance.random() < 0.2}
        yield number, leaving


def given(rank: int, ranks: int, number: int, leaving: dict[int, int]) -> tuple[torch.Tensor, ...]:
    """What a rank's program is called with; where nobody leaves it gives `number`, all over."""
    rows = [ranks if leaving.get(rank) == place else 0 for place in range(PLACES)]
    return torch.full((ranks, WIDTH), float(number + rank)), *(torch.tensor([row]) for row in rows)


def check(ranks: int, rounds: int, run: Callable[[int, dict[int, int]], list[torch.Tensor]]) -> None:
    """Run all rounds; `run` gives the results of the ranks of this process."""
    at_first = 0
    for number, leaving in drawn(ranks, rounds):
        if number == rounds // 5:
            at_first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            found = run(number, leaving)
        except (IndexError, RankAborted) as error:
            assert leaving, f"nobody left round {number}: {error}"
        else:
            assert not leaving, f"round {number} had a result without {leaving}"
            assert all(torch.equal(one, torch.full((ranks, WIDTH), float(number))) for one in found)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - at_first
    assert grown < MOST_GROWTH, f"{grown} KiB more after {rounds} rounds than after a fifth of them"


def main(rounds: int) -> None:
    dist.init_process_group("gloo")
    mesh = world_mesh(timeout=60)
    rank, runtime = mesh.owned[0], ProcessRuntime(mesh)
    one = program(mesh, rank, runtime.native_meeting())

    def run(number: int, leaving: dict[int, int]) -> list[torch.Tensor]:
        row = given(rank, mesh.size, number, leaving)
        return runtime.run([lambda: one(*row)])[0]

    check(mesh.size, rounds, run)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]))
