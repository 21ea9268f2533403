"""`torch.compile(model, backend="tpfx")`: the same numbers, weights divided by the first graph."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn

import tpfx
from tests.support.architectures import tiny as tiny_of
from tests.support.compare import TOLERANCE, largest_error
from tests.support.fresh_python import run
from tests.support.models import inputs, tiny
from tests.support.nets import Net
from tpfx.sharded_tensor.tensor import ShardedTensor

TWO = {"devices": ["cpu", "cpu"]}

pytestmark = pytest.mark.filterwarnings(
    "ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning"
)


def test_it_is_registered() -> None:
    assert "tpfx" in torch._dynamo.list_backends()


@pytest.mark.parametrize(
    ("task", "arch", "devices"),
    [
        ("causal", "qwen3_moe", 2),
        pytest.param("causal", "mamba", 2, marks=pytest.mark.slow),
        pytest.param("masked", "bert", 2, marks=pytest.mark.slow),
        ("seq2seq", "t5", 2),
        ("image", "vit", 2),
    ],
)
def test_architectures(task: str, arch: str, devices: int) -> None:
    plain, given = tiny_of(arch, task)
    model = tiny_of(arch, task)[0]
    compiled = torch.compile(model, backend="tpfx", options={"devices": ["cpu"] * devices})
    with torch.no_grad():
        assert largest_error(plain(**given), compiled(**given)) < TOLERANCE
        assert largest_error(plain(**given), compiled(**given)) < TOLERANCE
    report = tpfx.report(model)
    assert max(report.bytes_per_device) <= 1.1 / devices * report.total_bytes
    assert not report.whole_ops


def test_graphs_and_memory() -> None:
    """The whole weights are let go; the second shape compiles one more graph, others none."""
    plain, model = tiny("llama"), tiny("llama")
    whole = weakref.ref(model.lm_head.weight)
    compiled = torch.compile(model, backend="tpfx", options=TWO)
    counts = []
    with torch.no_grad():
        for batch, length in ((2, 12), (2, 12), (3, 9), (4, 7), (2, 12)):
            given = inputs(plain, batch, length)
            torch.testing.assert_close(compiled(**given).logits, plain(**given).logits)
            counts.append(tpfx.report(model).graphs - (counts[0] if counts else 0))
    first = counts[0]
    assert counts[1:] == [0, 1, 1, 1] and first >= 1
    gc.collect()
    assert whole() is None
    assert model.lm_head.weight.qualified_name == "lm_head.weight"
    torch.testing.assert_close(tpfx.full_state_dict(model), dict(plain.state_dict()), rtol=0, atol=0)


X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("when", ["before", "after"])
def test_training_with_an_optimizer_made_before_or_after(when: str) -> None:
    weights = []
    for split in (False, True):
        model = Net().train()
        call: Any = torch.compile(model, backend="tpfx", fullgraph=True, options=TWO) if split else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01) if when == "before" else None
        for _ in range(3):
            loss = call(X).square().sum()
            if optimizer is None:
                optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        weights.append({name: value.detach() for name, value in model.state_dict().items()})
    for name, value in weights[0].items():
        mine = weights[1][name]
        torch.testing.assert_close(mine.full() if isinstance(mine, ShardedTensor) else mine, value, msg=name)
    assert isinstance(model.up.weight, ShardedTensor) and model.up.weight.placement


def test_gradients_of_an_older_call_reach_the_weights_that_took_the_place() -> None:
    model, reference = Net(), Net()
    before, want = model(X), reference(X)
    call: Any = torch.compile(model, backend="tpfx", options=TWO)
    for result in (call(X), before):
        result.sum().backward()
    for _ in range(2):
        want.sum().backward(retain_graph=True)
    assert isinstance(model.up.weight, ShardedTensor)
    torch.testing.assert_close(model.up.weight.grad.full(), reference.up.weight.grad)


def test_graph_breaks() -> None:
    class Broken(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.norm(self.up(x))
            torch._dynamo.graph_break()
            return self.down(torch.relu(hidden)) + hidden.sum()

    plain, model = Broken().eval(), Broken().eval()
    compiled = torch.compile(model, backend="tpfx", options=TWO)
    with torch.no_grad():
        for size in (6, 4, 5):
            torch.testing.assert_close(compiled(X[:size]), plain(X[:size]))
    assert max(tpfx.report(model).bytes_per_device) < 0.7 * tpfx.report(model).total_bytes


def test_the_first_code_of_a_process_is_captured_as_later_code_is() -> None:
    """No session lives yet that would have Dynamo keep ops in graphs whose sizes values tell."""
    code = """
import torch, tpfx

class Rows(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            rows = torch.where(x.sum(-1) > 0)[0]
            x = x.index_add(0, rows, layer(x[rows]))
        return x

model = Rows()
torch.compile(model, backend="tpfx", options={"devices": ["cpu"] * 2})(torch.ones(3, 8))
print(tpfx.report(model).graphs)
"""
    assert run(code) == "1\n"


def test_after_a_reset() -> None:
    plain, model = Net().eval(), Net().eval()
    compiled = torch.compile(model, backend="tpfx", options=TWO)
    with torch.no_grad():
        compiled(X)
        torch.compiler.reset()
        torch.testing.assert_close(compiled(X), plain(X))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"device": ["cpu"]},
            tpfx.TpfxError,
            "is unknown to backend='tpfx'; it takes devices, topology",
        ),
        ({"devices": []}, tpfx.DeviceError, "devices is an empty list"),
        ({"devices": ["cpu", "gpu:0"]}, tpfx.DeviceError, "is not a device"),
        ({"devices": {"cpu": 2}}, tpfx.DeviceError, "pass a list of devices"),
    ],
)
def test_options_that_are_wrong(options: Any, error: type[Exception], message: str) -> None:
    model = Net()
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=message) as caught:
        torch.compile(model, backend="tpfx", options=options)(X)
    assert isinstance(caught.value.inner_exception, error)
    assert all(type(weight) is nn.Parameter for weight in model.parameters())
