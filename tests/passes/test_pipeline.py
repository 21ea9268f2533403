"""The pipeline: its order, what it shows of each stage, and that a plan computes what the model does."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import torch

import tpfx
from tests.support.graphs import lines, read
from tpfx.ir.annotations import source_of
from tpfx.passes import pipeline
from tpfx.passes.lower import lower
from tpfx.passes.pipeline import PASSES, STAGES, parallelize
from tpfx.passes.stages import observing
from tpfx.runtime.mesh import Mesh, parse_devices

MLP = """
    x: f64[3, 8]
    up: f64[16, 8] = parameter
    down: f64[8, 16] = parameter
    return linear(relu(mm(x, t(up))), down)
"""


def compiled(text: str, devices: int = 2) -> Any:
    """What `parallelize` makes of a text."""
    graph = read(text)
    sources = [source_of(node) for node in graph.find_nodes(op="placeholder")]
    return parallelize(graph, sources, devices)


def test_the_passes_are_named_and_in_order() -> None:
    names = "normalize simplify infer_axes list_splits fingerprint match_pinned choose divide insert"
    assert [one.name for one in PASSES] == names.split()
    with pytest.raises(dataclasses.FrozenInstanceError):
        PASSES[0].name = "other"  # type: ignore[misc]


def test_a_whole_plan() -> None:
    parallel = compiled(
        """
        x: f32[3, 5, 64]
        up: f32[256, 64] = parameter
        up_bias: f32[256] = parameter
        down: f32[64, 256] = parameter
        down_bias: f32[64] = parameter
        side: f32[256, 64] = parameter
        back: f32[64, 256] = parameter
        one = addmm(up_bias, view(x, [15, 64]), t(up))
        two = addmm(down_bias, relu(one), t(down))
        y = add(x, view(two, [3, 5, 64]))
        return sin(add(y, linear(relu(linear(x, side)), back)))
        """
    )
    assert lines(parallel.graph) == inspect.cleandoc(
        """
        x.partial f32[3, 5, 64]+ = to_partial(x)
        down_bias.partial f32[64]+ = to_partial(down_bias)
        reshape f32[15, 64] = reshape(x)
        linear f32[15, 256/2] = linear(reshape, up) # column, split n
        add f32[15, 256/2] = add(linear, up_bias) # split a
        relu f32[15, 256/2] = relu(add) # split a
        linear_1 f32[15, 64]+ = linear(relu, down) # row, split k
        reshape_1 f32[3, 5, 64]+ = reshape(linear_1) # partial sum
        add_1 f32[3, 5, 64]+ = add(reshape_1, down_bias.partial) # partial sum
        add_2 f32[3, 5, 64]+ = add(x.partial, add_1) # partial sum
        linear_2 f32[3, 5, 256/2] = linear(x, side) # column, split n
        relu_1 f32[3, 5, 256/2] = relu(linear_2) # split c
        linear_3 f32[3, 5, 64]+ = linear(relu_1, back) # row, split k
        add_3 f32[3, 5, 64]+ = add(add_2, linear_3) # partial sum
        add_3.sum f32[3, 5, 64] = all_reduce(add_3) # 3.75 KiB
        sin f32[3, 5, 64] = sin(add_3.sum)
        return sin
        """
    )


def test_each_stage_is_shown_to_an_observer() -> None:
    seen: list[str] = []
    with observing(lambda name, graph: seen.append(name)):
        parallel = compiled(MLP)
        mesh = Mesh(parse_devices(["cpu"] * 2))
        lower(parallel.graph, mesh, parallel.graph.owning_module)
    compiled(MLP)  # nobody looks
    assert seen == [*STAGES, "localize"]


def test_stages_are_printed_where_the_environment_says_so(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("TPFX_DUMP", "captured, choose")
    compiled(MLP)
    out, err = capsys.readouterr()
    captured, choose = err.split("# after choose\n")
    assert out == ""
    assert captured.startswith("# after captured\ngraph():\n    %x : [num_users=1] = placeholder[target=x]")
    assert "linear    f64[3, 16/a]  = linear(x, up)       # column, split n\n" in choose


def test_all_stages_are_printed(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("TPFX_DUMP", "all")
    parallel = compiled(MLP)
    lower(parallel.graph, Mesh(parse_devices(["cpu"] * 2)), parallel.graph.owning_module)
    err = capsys.readouterr().err
    found = [line.removeprefix("# after ") for line in err.splitlines() if line.startswith("# after ")]
    assert found == [*STAGES, "localize"]
    assert "torch.ops._c10d_functional.all_reduce_.default(" in err


@pytest.mark.parametrize("value", ["chose", "choose,all", "captured,,parallel"])
def test_a_stage_that_is_not_there(monkeypatch: Any, value: str) -> None:
    monkeypatch.setenv("TPFX_DUMP", value)
    wrong = next(name for name in value.split(",") if name not in (*STAGES, ""))
    with pytest.raises(
        tpfx.InputError, match=f"TPFX_DUMP={value}: there is no stage '{wrong}'; there are captured, "
    ):
        compiled(MLP)


def test_a_pass_that_breaks_an_invariant_is_named(monkeypatch: Any) -> None:
    kept = [
        one if one.name != "insert" else dataclasses.replace(one, run=lambda graph, _: None) for one in PASSES
    ]
    monkeypatch.setattr(pipeline, "PASSES", tuple(kept))
    with pytest.raises(
        tpfx.ShardingError, match=r"after insert, it does not hold that .* the graph: linear_default"
    ):
        compiled(MLP)


class ParallelGraph(torch.nn.Module):
    """Two MLPs that read the same input and are added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(64, 256), torch.nn.Linear(256, 64)
        self.side, self.back = torch.nn.Linear(64, 256, bias=False), torch.nn.Linear(256, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.down(self.up(x).relu()) + self.back(self.side(x).relu())).sin()


class Repeats(torch.nn.Module):
    """The same thing twice, and things that do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.cos() * 1.0 + x.cos()[:, 0:]).view(4, 8) * self.weight


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_rewrites_keep_the_meaning(devices: int) -> None:
    for model, shape in ((ParallelGraph(), (3, 5, 64)), (Repeats(), (4, 8))):
        x = torch.randn(shape)
        with torch.no_grad():
            expected = model(x)
            torch.testing.assert_close(tpfx.compile(model, devices)(x), expected)
