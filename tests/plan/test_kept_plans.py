"""Plans that are kept between processes: the same as those that are made, and never in the way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tpfx
from tests.support.graphs import read
from tests.support.nets import Net
from tpfx.ir.annotations import source_of
from tpfx.ir.parallel_graph import Solution
from tpfx.ir.shards import Shards
from tpfx.passes import pipeline
from tpfx.passes.apply_plan import GraphChoices
from tpfx.passes.choose import choose
from tpfx.passes.stages import observing, text_of
from tpfx.plan import kept_plans
from tpfx.plan.kept_plans import KeptPlans, of_user
from tpfx.planning import Topology
from tpfx.rules.table import TABLE

MLP = """
    x: f32[3, 64]
    up: f32[255, 64] = parameter
    down: f32[64, 255] = parameter
    return linear(relu(linear(x, up)), down)
"""
CHOICES = GraphChoices(["input  -> *"], {}, Solution([], 1.5, 1.0, False, 3))


@pytest.fixture
def kept(tmp_path: Path) -> KeptPlans:
    return KeptPlans(tmp_path / "plans")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs for which choices are made."""
    graphs: list[Any] = []
    monkeypatch.setattr(pipeline, "choose", lambda graph, *rest: graphs.append(graph) or choose(graph, *rest))
    return graphs


def stages(
    kept: KeptPlans | None, ranks: int = 2, topology: Topology | None = None, text: str = MLP, **pinned: Any
) -> dict[str, str]:
    """The text of a graph after every stage, and what was proved."""
    graph, seen = read(text, **pinned), dict[str, str]()
    sources = [source_of(node) for node in graph.find_nodes(op="placeholder")]
    with observing(lambda name, now: seen.update({name: text_of(name, now)})):
        parallel = pipeline.parallelize(graph, sources, ranks, topology, kept=kept)
    one = parallel.solution
    return {**seen, "proved": str((one.cost, one.bound, one.optimal, one.width, parallel.recalled))}


def test_what_is_kept_is_what_would_be_made(kept: KeptPlans, made: list[Any]) -> None:
    for ranks in (2, 3):  # 255 rows lie unevenly
        first, again, without = stages(kept, ranks), stages(kept, ranks), stages(None, ranks)
        assert first == again == without
    assert len(made) == 4 and len(kept.files()) == 2


def test_choices_are_kept_for_all_that_choosing_goes_by(
    kept: KeptPlans, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = Shards(((0, (((0, 100),), ((100, 255),))),))
    stages(kept)
    stages(kept, topology=Topology(flops=1.0))
    stages(kept, up=halves)
    stages(kept, text=MLP.replace("3, 64", "5, 64"))
    monkeypatch.setitem(TABLE, torch.ops.aten.flatten_dense_tensors.default, TABLE[torch.ops.aten.mm.default])
    stages(kept)
    assert len(made) == len(kept.files()) == 5
    monkeypatch.setattr(kept_plans, "_versions", lambda: "another")
    stages(kept)
    assert len(made) == len(kept.files()) == 6


def _broken(path: Path) -> Iterator[bytes]:
    whole = path.read_bytes()
    yield whole[:-20]
    yield b""
    yield b"\xff\xfe"
    yield b"[1, 2]"
    yield whole.replace(b"split", b"whole", 1)
    yield whole.replace(b'"key": "', b'"key": "0', 1)


def test_a_broken_file_is_written_anew(
    kept: KeptPlans, made: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    expected = stages(kept)
    (path,) = kept.files()
    whole = path.read_bytes()
    for at, broken in enumerate(_broken(path)):
        path.write_bytes(broken)
        with caplog.at_level(logging.DEBUG, "tpfx"):
            assert stages(kept) == expected
        assert f"{path} is no plan that this tpfx can read" in caplog.text and len(made) == at + 2
        assert path.read_bytes() == whole
        caplog.clear()


def test_choices_that_an_op_does_not_allow_are_made_anew(kept: KeptPlans, made: list[Any]) -> None:
    expected = stages(None)
    keys: list[str] = []

    class Wrong:
        def get(self, key: str) -> GraphChoices:
            keys.append(key)
            return GraphChoices(["split 0 0 -> 0"] * 5, {0: [100, 155]}, CHOICES.solution)  # divides nothing

        def put(self, key: str, choices: GraphChoices) -> None:
            keys.append(key)
            kept.put(key, choices)

    assert stages(Wrong()) == expected  # type: ignore[arg-type]
    assert keys == [keys[0]] * 2 and stages(kept) == expected and len(made) == 2


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path: Path, made: list[Any]) -> None:
    (tmp_path / "file").touch()
    assert stages(KeptPlans(tmp_path / "file" / "plans")) == stages(None)


def test_what_was_used_longest_ago_goes(kept: KeptPlans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_plans, "AT_MOST", 4)
    for key in "abcde":
        kept.put(key, CHOICES)
        if key != "e":
            assert kept.get("a") == CHOICES
    assert {key for key in "abcde" if kept.get(key)} == {"a", "d", "e"}


def test_several_write_and_read_at_once(kept: KeptPlans) -> None:
    """Who reads finds all of it or nothing."""
    found: list[Any] = []

    def work() -> None:
        for _ in range(50):
            kept.put("key", CHOICES)
            found.append(kept.get("key"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CHOICES] * 200
    assert list(kept.folder.iterdir()) == [kept.path("key")]


def test_the_users_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: list[Any]) -> None:
    """A compiled model looks there, unless the environment says no."""
    assert of_user() is None  # as the tests have it
    monkeypatch.setenv("TPFX_CACHE", "1")
    monkeypatch.setenv("TPFX_CACHE_DIR", str(tmp_path))
    placements = []
    for _ in range(2):
        model = tpfx.compile(Net(), ["cpu"] * 2, example_inputs=(torch.zeros(3, 8),), device_compiler="eager")
        placements.append([value.placement for value in model.parameters()])
    kept = of_user()
    assert kept is not None and len(made) == len(kept.files()) == 1
    assert placements[0] == placements[1]
