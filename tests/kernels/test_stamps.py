"""Times that are noted from Python: a graph computes the same, and each op has one."""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule

from tpfx.kernels.stamps import BETWEEN, COLLECTIVE, TimedCode, TimedWhole, stamp_collective

aten = torch.ops.aten


def module() -> GraphModule:
    graph = Graph()
    x = graph.placeholder("x")
    double = graph.call_function(aten.mul.Tensor, (x, 2))
    stamp = graph.call_function(aten.add.Tensor, (double, x), name="stamp")
    graph.output((stamp, double))
    return GraphModule(torch.nn.Module(), graph)


def test_a_graph_runs_as_before_and_every_op_has_a_time() -> None:
    plain = module()
    timed = TimedCode(plain)
    for x in (torch.ones(2), torch.zeros(3)):
        for found, expected in zip(timed(x), plain(x), strict=True):
            assert torch.equal(found, expected)
    names, times = timed.take_times()
    assert names == ["mul_tensor", "stamp"] and times.shape == (2, 3)
    assert (times.diff(dim=1) >= 0).all() and times[0, -1] <= times[1, 0]
    assert timed.take_times()[1].shape[0] == 0
    assert timed.plain(torch.ones(1)) == plain(torch.ones(1))


def test_compiled_code_has_the_times_of_its_collectives() -> None:
    def code(x: torch.Tensor, meets: int) -> list[torch.Tensor]:
        for _ in range(meets):
            stamp_collective()
            stamp_collective()
        return [x]

    timed = TimedWhole(code)
    timed(torch.ones(1), 1)
    timed(torch.ones(1), 1)
    names, times = timed.take_times()
    assert names == [BETWEEN, COLLECTIVE, BETWEEN] and times.shape == (2, 4)
    timed(torch.ones(1), 1)
    timed(torch.ones(1), 2)  # of a loop that runs again, say
    names, times = timed.take_times()
    assert names == [BETWEEN] and times.shape == (2, 2)


def test_what_is_not_timed_notes_nothing() -> None:
    stamp_collective()
    timed = TimedCode(module())
    timed(torch.ones(1))
    stamp_collective()
    assert timed.take_times()[1].shape == (1, 3)
