"""Capture without weights: a model is left as it was, phases, graphs that keep values for others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.models import inputs, tiny
from tests.support.nets import Net
from tpfx.capture.capture import capture
from tpfx.errors import InputError, ModelError
from tpfx.ir.annotations import Source

EXAMPLE = (torch.zeros(3, 8),)


def test_a_model_is_left_as_it_was() -> None:
    model = nn.Sequential(Net().train(), Net().eval(), nn.BatchNorm1d(8))
    model[1].down.weight = model[0].down.weight  # tied
    before = [*model.state_dict(keep_vars=True).items()]
    (captured,) = capture(model, EXAMPLE)
    names = [source.name for source in captured.sources]
    assert names.count("0.down.weight") == 1
    assert "1.down.weight" not in names
    after = [*model.state_dict(keep_vars=True).items()]
    assert [name for name, _ in after] == [name for name, _ in before]
    assert all(value is same for (_, value), (_, same) in zip(before, after, strict=True))
    assert [module.training for module in model] == [True, False, True]
    with pytest.raises(ModelError, match=r"^Sequential cannot be captured: .*"):
        capture(model, (torch.zeros(3, 7),))
    assert model[0].up.weight is before[0][1]
    assert [module.training for module in model] == [True, False, True]


class Keeps(nn.Module):
    """Makes a buffer in its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", None)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.table = x.sum(0)
        return self.linear(x) + self.table


def test_a_buffer_that_a_call_makes_is_not_kept_as_a_fake_one() -> None:
    model = Keeps()
    capture(model, EXAMPLE)
    assert model.table is None


def test_a_captured_graph_has_fake_values_and_varying_sizes() -> None:
    (captured,) = capture(Net(), EXAMPLE)
    nodes = captured.module.graph.find_nodes(op="placeholder")
    values = {source.name: node.meta["val"] for node, source in zip(nodes, captured.sources, strict=True)}
    assert list(values["up.weight"].shape) == [24, 8]
    (given,) = (values[name] for name in values if "x" in name)
    assert isinstance(given.shape[0], torch.SymInt)
    (fixed,) = capture(Net(), EXAMPLE, symbolic=False)
    shapes = [node.meta["val"].shape for node in fixed.module.graph.find_nodes(op="placeholder")]
    assert all(isinstance(size, int) for shape in shapes for size in shape)


def test_a_decode_step_takes_what_the_call_before_has_kept() -> None:
    model = tiny("llama", num_hidden_layers=1)
    prefill, decode = capture(model, inputs(model), phase="decode")
    assert (prefill.phase, decode.phase) == ("prefill", "decode")
    assert prefill.kept == {}
    placeholders = decode.module.graph.find_nodes(op="placeholder")
    shapes = []
    for at, (number, result) in decode.kept.items():
        assert number == 0
        returned = prefill.results()[result].shape
        taken = placeholders[at].meta["val"].shape
        assert len(returned) == len(taken)
        shapes.append([taken[1], taken[3]])
    assert shapes == [[2, 16], [2, 16]]  # keys and values: heads and width
    with pytest.raises(InputError, match="Net has no decode step"):
        capture(Net(), EXAMPLE, phase="decode")


class Breaks(nn.Module):
    """Two graphs, of which the second takes what the first returns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)


def test_a_result_of_one_graph_is_known_in_the_next() -> None:
    first, second = capture(Breaks(), EXAMPLE)
    ((at, origin),) = second.kept.items()
    assert origin == (0, 0)
    assert second.sources[at].kind == "input"
    assert Source("parameter", "first.weight") in first.sources
    assert Source("parameter", "second.weight") in second.sources
    value = second.module.graph.find_nodes(op="placeholder")[at].meta["val"]
    assert isinstance(value.shape[0], torch.SymInt), "its batch varies, as that of what it is made of"
    (_, joint) = capture(Breaks(), EXAMPLE, phase="train")
    assert joint.kept == {}


def test_a_phase_that_is_none_and_inputs_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="later is not a phase; it is one of prefill, decode, train"):
        capture(Net(), EXAMPLE, phase="later")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Net has no inputs of its own"):
        capture(Net())
    with pytest.raises(ModelError, match="Identity computes nothing with tensors"):
        capture(nn.Identity(), EXAMPLE)


def test_capturing_again_and_again_is_not_limited() -> None:
    model = Net()
    limit = torch._dynamo.config.recompile_limit
    graphs = {str(capture(model, EXAMPLE, symbolic=False)[0].module.graph) for _ in range(limit + 2)}
    assert len(graphs) == 1
