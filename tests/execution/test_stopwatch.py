"""What notes times of runs: in order, of the meshes that it watches, and not after it has ended."""

from __future__ import annotations

import pytest

from tpfx.console.progress import working
from tpfx.execution.stopwatch import Stopwatch, watch_of
from tpfx.runtime.mesh import Mesh, parse_devices


def mesh() -> Mesh:
    return Mesh(parse_devices(["cpu", "cpu"]))


def test_the_newest_that_watches_a_mesh_has_its_runs() -> None:
    one, other = mesh(), mesh()
    assert watch_of(one) is None
    with Stopwatch() as all_, Stopwatch([one]) as own:
        assert (watch_of(one), watch_of(other)) == (own, all_)
    assert watch_of(one) is watch_of(other) is None


def test_what_lies_within_something_else_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("tpfx.execution.stopwatch.perf_counter", lambda: float(next(now)))
    with Stopwatch() as watch:
        with working("capturing"), working("planning"):
            pass
        with working("compiling"):
            pass
    assert watch.compiling == 2 + 1
