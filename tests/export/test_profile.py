"""Profiles: where seconds go adds up, whose they are is right, and the model is as before."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.launches import Launched
from tests.support.nets import Mlp
from tests.support.tape import Tapes
from tpfx.console.progress import LISTENERS
from tpfx.errors import InputError, ModelError
from tpfx.export.profile_times import layers_of
from tpfx.export.timeline import Estimated, GraphRuns, Op, RankRuns
from tpfx.frontend import session
from tpfx.plan.estimate import estimate
from tpfx.runtime.mesh import Mesh

CPUS = ["cpu", "cpu"]
X = torch.randn(8, 64)


class Deep(nn.Module):
    """Blocks that are alike, and one more linear layer."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Mlp() for _ in range(blocks))
        self.head = nn.Linear(64, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture
def deep() -> nn.Module:
    return tpfx.compile(Deep(), CPUS, example_inputs=(X,))


def check_sums(profile: tpfx.Profile, trace: Path) -> None:
    """What ranks did adds up, and is what the spans of the trace add up to."""
    profile.export_chrome_trace(trace)
    events = json.loads(trace.read_text())["traceEvents"]
    rows = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert rows == {one.rank: f"rank {one.rank} ({one.device})" for one in profile.ranks}
    spans: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X" and event["cat"] != "graph":
            spans[event["tid"]].append(event)
    assert sorted(spans) == sorted(rows)
    for one in profile.ranks:
        own, micro = spans[one.rank], profile.seconds * 1e6
        ends = [event["ts"] + event["dur"] for event in own]
        assert own[0]["ts"] >= 0 and ends[-1] <= micro
        assert all(end <= after["ts"] + 1e-3 for end, after in zip(ends, own[1:], strict=False))
        took: dict[str, float] = defaultdict(float)
        for event in own:
            kind = event["cat"] if event["cat"] in ("compute", "waiting") else "collectives"
            took[kind] += event["dur"] / 1e6
        assert took == pytest.approx({kind: getattr(one, kind) for kind in took}), one
        assert one.outside >= 0 and min(took.values()) >= 0
        inside = one.compute + one.collectives + one.waiting
        assert inside + one.outside == pytest.approx(profile.seconds)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="native"),
        pytest.param({"device_compiler": "eager"}, id="eager"),
        pytest.param({"device_compiler": "inductor"}, id="inductor", marks=pytest.mark.slow),
        pytest.param({"processes": True}, id="processes"),
        pytest.param(
            {"processes": True, "device_compiler": "eager"}, id="eager-processes", marks=pytest.mark.slow
        ),
    ],
)
def test_seconds_add_up_whatever_runs_the_graphs(options: dict[str, Any], tmp_path: Path) -> None:
    model = tpfx.compile(Deep(), CPUS, example_inputs=(X,), **options)
    expected = model(X)
    with tpfx.profile(model) as profile:
        for _ in range(3):
            assert torch.equal(model(X), expected)
    check_sums(profile, tmp_path / "trace.json")
    assert (profile.runs, profile.compiling, len(profile.ranks)) == (3, 0.0, 2)
    met = {one.module for one in profile.layers if min(one.collectives) > 0}
    assert {f"blocks.{at}.down" for at in range(3)} <= met
    assert torch.equal(model(X), expected)


def test_modules_are_those_of_the_model_and_alike_ones_are_folded(deep: nn.Module) -> None:
    profile = tpfx.profile(deep, X)
    names = [one.module for one in profile.layers]
    assert set(names) <= {name for name, _ in deep.named_modules()}
    assert {"blocks.0.up", "blocks.2.down", "head"} <= set(names)
    text = str(profile)
    assert "blocks.0–2.down" in text and "blocks.1.down" not in text and "Deep on 2 devices" in text
    assert "largest difference: " in text
    assert "<td" in profile._repr_html_() and "blocks.0–2.down" in profile._repr_html_()
    folded = next(line for line in text.splitlines() if "blocks.0–2.up" in line)
    assert folded.split("│")[3:5] == [" " * (len(part) - 2) + "– " for part in folded.split("│")[3:5]]


def test_estimates_are_those_of_the_plan(deep: nn.Module) -> None:
    with tpfx.profile(deep) as profile:
        deep(X)
        deep(X)
    parallel = tpfx.report(deep).parallel
    assert parallel is not None
    expected = estimate(parallel, profile.topology)
    compute = [sum(one.estimated_compute[rank] for one in profile.layers) for rank in range(2)]
    collectives = sum(one.estimated_collectives[0] for one in profile.layers)
    assert max(compute) == pytest.approx(2 * expected.compute)
    assert collectives + profile.estimated_outside == pytest.approx(2 * expected.messages)
    assert profile.estimated_outside > 0


def test_who_comes_last_waits_for_nobody() -> None:
    """Planted times, in nanoseconds: rank 1 comes 30 later the first time, rank 0 5 the second."""
    ops = [Op("up", "up"), Op("down.sum", "down", "all_reduce", "all_reduce"), Op("out", "")]
    times = [[[0, 10, 50, 60], [100, 125, 130, 131]], [[0, 40, 52, 70], [100, 120, 130, 140]]]
    ranks = [
        RankRuns(rank, "cpu", "here", ops, torch.tensor(own), torch.tensor([70, 140]))
        for rank, own in enumerate(times)
    ]
    waited = GraphRuns("forward", ranks, {}, 0.0).waited()
    assert [one.tolist() for one in waited] == [[[0, 30, 0], [0, 0, 0]], [[0, 0, 0], [0, 5, 0]]]


def test_a_process_alone_has_the_estimates_of_its_own_ranks() -> None:
    """The times of the others are not had where a script fails, or has ended its process group."""
    ops = [Op("up", "up", "linear"), Op("down.sum", "down", "all_reduce", "all_reduce")]
    alone = RankRuns(1, "cpu", "here", ops, torch.tensor([[0, 10, 50]]), torch.tensor([50]))
    estimated = {"up": Estimated([1.0, 2.0], 0.0), "down": Estimated([0.0, 0.0], 3.0)}
    up, down = layers_of([GraphRuns("forward", [alone], estimated, 0.0)])
    assert (up.estimated_compute, up.estimated_collectives, up.ops) == ([2.0], [0.0], ["linear"])
    assert (down.estimated_compute, down.estimated_collectives) == ([0.0], [3.0])
    assert up.compute == pytest.approx([10e-9]) and down.collectives == pytest.approx([40e-9])


@torch.library.custom_op("test::linger", mutates_args=())
def linger(x: torch.Tensor) -> torch.Tensor:
    """Takes half a second where a rank has the larger shard."""
    if x.shape[-1] == 2:
        sleep(0.5)
    return x.clone()


linger.register_fake(torch.empty_like)


def test_others_wait_for_a_slow_rank() -> None:
    tpfx.register_rule(torch.ops.test.linger, "... d -> ... d")

    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(64, 3, bias=False), nn.Linear(3, 64, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(torch.ops.test.linger(self.up(x)))

    model = tpfx.compile(Uneven(), CPUS)
    profile = tpfx.profile(model, X)
    slow, fast = sorted(profile.ranks, key=lambda one: -one.compute)
    assert slow.waiting < fast.waiting > fast.compute
    down = next(one for one in profile.layers if one.module == "down")
    assert down.waiting[slow.rank] < down.waiting[fast.rank]
    assert down.collectives[fast.rank] < down.waiting[fast.rank]
    assert f"wait for rank {slow.rank} (cpu)" in str(profile)


def test_a_step_of_training_has_a_backward_with_the_names_of_the_forward(tmp_path: Path) -> None:
    with torch.enable_grad():
        model = tpfx.compile(Deep(), CPUS)
        model(X).sum().backward()
        with tpfx.profile(model) as profile:
            model(X).sum().backward()
    check_sums(profile, tmp_path / "trace.json")
    backward = {one.module: one for one in profile.layers if one.phase == "backward"}
    assert set(backward) <= {name for name, _ in model.named_modules()}
    assert all(min(backward[f"blocks.{at}.{name}"].compute) > 0 for at in range(3) for name in ("up", "down"))
    assert "blocks.0–2.down, backward" in str(profile)


def test_a_call_that_compiles_is_made_again(tmp_path: Path) -> None:
    plain = Deep()
    expected = plain(X)
    model = tpfx.compile(plain, CPUS)
    profile = tpfx.profile(model, x=X)
    assert torch.allclose(profile.result, expected, atol=1e-5)
    assert (profile.runs, profile.compiling) == (1, 0.0)
    with tpfx.profile(model) as first:
        model(torch.randn(1, 64))
    assert 0 < first.compiling < first.seconds and "capturing, planning and compiling" in str(first)
    profile.save(tmp_path / "profile.json")
    found = json.loads((tmp_path / "profile.json").read_text())
    assert found == json.loads(json.dumps(profile.to_dict())) and found["schema"] == 1
    ((graph,),) = (found["timeline"],)
    assert (graph["phase"], graph["runs"], [one["rank"] for one in graph["ranks"]]) == ("forward", 1, [0, 1])
    spans = graph["ranks"][1]["spans"]
    assert {"blocks.0.up", "blocks.0.down.sum"} <= {span["name"] for span in spans}
    assert (
        {"compute", "all_reduce"} <= {span["kind"] for span in spans} <= {"compute", "all_reduce", "waiting"}
    )
    assert sum(span["seconds"] for span in spans) <= graph["seconds"] + 1e-9 <= profile.seconds + 2e-9


def test_the_model_is_as_before(deep: nn.Module) -> None:
    listeners = list(LISTENERS)
    with tpfx.profile(deep) as profile:
        deep(X)
    (log,) = profile._watch.logs if profile._watch else ()
    before = [one.take_times()[1].shape[0] for one in log.ranks.forwards]
    deep(X)
    after = [one.take_times()[1].shape[0] for one in log.ranks.forwards]
    assert before == after == [0, 0]
    assert log.ranks.watch is None and listeners == LISTENERS
    assert profile.runs == 1


def test_a_model_of_the_other_door_on_the_same_devices_is_not_its_part(deep: nn.Module) -> None:
    other = Deep()
    torch.compile(other, backend="tpfx", options={"devices": CPUS})(X)
    assert tpfx.profile(deep, X).runs == 1


def test_a_profile_in_another_has_the_runs_inside(deep: nn.Module) -> None:
    deep(X)
    with tpfx.profile(deep) as outer:
        deep(X)
        with tpfx.profile(deep) as inner:
            deep(X)
            deep(X)
        deep(X)
    assert (inner.runs, outer.runs) == (2, 2)


def test_recordings_are_not_replayed_while_ops_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tapes] = []

    def recorder_for(mesh: Mesh) -> Tapes:
        made.append(Tapes(mesh))
        return made[-1]

    monkeypatch.setattr(session, "recorder_for", recorder_for)
    model = tpfx.compile(Mlp(), CPUS, mode="reduce-overhead", device_compiler="eager")
    for _ in range(3):
        expected = model(X)
    (tape,) = made[0].made
    before = tape.replays
    with tpfx.profile(model) as profile:
        assert torch.equal(model(X), expected)
    assert (tape.replays, profile.runs) == (before, 1) and before > 0
    model(X)
    assert tape.replays == before + 1


def test_what_ran_before_an_error_is_measured(deep: nn.Module) -> None:
    deep(X)
    with pytest.raises(ZeroDivisionError), tpfx.profile(deep) as profile:
        deep(X)
        raise ZeroDivisionError
    assert profile.runs == 1 and profile.ranks[0].compute > 0


@torch.library.custom_op("test::refuse", mutates_args=())
def refuse(x: torch.Tensor) -> torch.Tensor:
    """Fails for what is above 100."""
    if x.max() > 100:
        raise ValueError("above 100")
    return x.clone()


refuse.register_fake(torch.empty_like)


def test_a_run_that_fails_is_left_out() -> None:
    class Refusing(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.test.refuse(super().forward(x))

    model = tpfx.compile(Refusing(), CPUS, example_inputs=(X,))
    expected = model(X)
    with tpfx.profile(model) as profile:
        model(X)
        with pytest.raises(ValueError, match="above 100"):
            model(X * 1e6)
        assert torch.equal(model(X), expected)
    assert profile.runs == 2
    assert min(min(one.compute) for one in profile.layers if one.module == "up") > 0
    assert all(one.outside > 0 for one in profile.ranks)


def test_what_is_not_compiled_or_compiled_twice_is_refused(deep: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"not compiled; call tpfx\.compile"):
        tpfx.profile(Mlp(), X)
    with pytest.raises(ModelError, match=r"takes an nn\.Module, got str"):
        tpfx.profile("model")  # type: ignore[arg-type]
    parts = nn.ModuleDict({"one": tpfx.compile(Mlp(), CPUS), "two": tpfx.compile(Mlp(), CPUS)})
    with pytest.raises(
        InputError, match="2 parts of this ModuleDict are compiled by themselves; profile one"
    ):
        tpfx.profile(parts)
    assert tpfx.profile(nn.Sequential(deep), X).runs == 1
    profile = tpfx.profile(deep, X)
    with pytest.raises(InputError, match="has been measured already"), profile:
        pass
    with tpfx.profile(deep) as empty:
        pass
    assert str(empty).startswith("nothing was measured")


def test_what_torch_compile_has_split() -> None:
    model = torch.compile(Deep(), backend="tpfx", options={"devices": CPUS})
    model(X)
    profile = tpfx.profile(model, X)
    assert profile.runs == 1 and "Deep on 2 devices" in str(profile)
    assert "blocks.1.down" in {one.module for one in profile.layers}


def test_processes_have_the_times_of_all(two_processes: Launched) -> None:
    zero, one = two_processes.results("profiled")
    assert zero["ranks"] == one["ranks"] and [each["rank"] for each in zero["ranks"]] == [0, 1]
    for found in (zero, one):
        assert found["complete"] and found["runs"] == 2 and len(found["timeline"][0]["ranks"]) == 2
    slow, fast = zero["ranks"]
    assert slow["waiting"] < fast["waiting"]
