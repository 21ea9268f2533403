"""Inductor's code for each device: the same numbers, however inputs lie in memory; errors with a remedy."""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.models import inputs, tiny
from tpfx.frontend import aot_compiler
from tpfx.lowering import device_compiler

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler"
)


class Counter(nn.Module):
    """Writes into its buffer, and returns a view of its input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen += x.sum(0)
        return self.down(torch.relu(self.up(x))), x.t()


@needs_compiler
def test_what_lies_otherwise_and_what_is_written_into() -> None:
    """Inputs whose dimensions lie in another order than those that the code was made for, and a buffer."""
    plain, given = Counter().eval(), torch.randn(5, 8)
    model = tpfx.compile(Counter().eval(), 2, device_compiler="inductor")
    turned = torch.randn(8, 5).t()
    with torch.no_grad():
        for x in (given, turned, given, torch.randn(6, 16)[:, ::2], turned):
            for found, expected in zip(model(x), plain(x), strict=True):
                torch.testing.assert_close(found, expected)
            torch.testing.assert_close(model.seen.full(), plain.seen)
    report = tpfx.report(model)
    assert report.device_compiler == "inductor" and ", run by inductor)" in str(report)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("llama", 2), ("gpt2", 3), ("mixtral", 2)])
def test_writes_the_same_text(name: str, count: int) -> None:
    plain, given = tiny(name), inputs(tiny(name))
    model = tpfx.compile(tiny(name), count, device_compiler="inductor")
    with torch.no_grad():
        torch.testing.assert_close(model(**given).logits, plain(**given).logits)
    for options in ({}, {"num_beams": 3}, {"do_sample": True}, {"cache_implementation": "static"}):
        texts = []
        for one in (model, plain):
            torch.manual_seed(3)
            texts.append(one.generate(**given, max_new_tokens=6, min_new_tokens=6, **options))
        assert torch.equal(*texts), options


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_trains_as_usual(name: str) -> None:
    """Three steps with dropout: losses, and the weights after them."""
    models = (tiny(name), tpfx.compile(tiny(name), 2, device_compiler="inductor"))
    given, losses = inputs(models[0]), []
    for model in models:
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
        losses.append([])
        for step in range(3):
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss = model(**given, labels=given["input_ids"]).loss
            loss.backward()
            optimizer.step()
            losses[-1].append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    expected = dict(models[0].state_dict())
    torch.testing.assert_close(tpfx.full_state_dict(models[1]), expected, atol=1e-4, rtol=1e-3)


def test_turned_tensors_keep_their_values() -> None:
    value = torch.randn(2, 3, 4)
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        turned = device_compiler._turned(value, order)
        assert torch.equal(turned, value) and turned.permute(order).is_contiguous()
        assert device_compiler._turned(turned, order) is turned
        assert device_compiler._order(turned) == order


def test_one_that_is_unknown() -> None:
    message = "device_compiler='tvm' is unknown; pass 'native', 'inductor' or 'eager'"
    with pytest.raises(tpfx.TpfxError, match=message):
        tpfx.compile(tiny("gpt2"), 2, device_compiler="tvm")
    compiled = torch.compile(tiny("gpt2"), backend="tpfx", options={"devices": 2, "device_compiler": "tvm"})
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=message):
        compiled(**inputs(tiny("gpt2")))


def test_what_inductor_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the remedy, and another model is none the worse."""

    def fail(*_: Any) -> None:
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(device_compiler, "compile_by_inductor", fail)
    plain, given = Counter().eval(), torch.randn(5, 8)
    model = tpfx.compile(Counter().eval(), 2, device_compiler="inductor")
    with torch.no_grad(), pytest.raises(tpfx.TpfxError) as caught:
        model(given)
    text = str(caught.value)
    assert "cannot compile the graph of rank 0 (cpu); device_compiler='eager'" in text
    assert "RuntimeError: no C++ compiler" in text and "and more" not in text
    with torch.no_grad():
        torch.testing.assert_close(tpfx.compile(Counter().eval(), 2)(given)[0], plain(given)[0])


@needs_compiler
def test_a_rank_that_never_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is that of the collective, not the one that C++ makes of it."""
    compiled = aot_compiler.compile_for_devices

    def one_is_late(*given: Any) -> list[Any]:
        first, second = compiled(*given)
        return [first, lambda *args: (time.sleep(2.5), second(*args))[1]]

    monkeypatch.setattr(aot_compiler, "compile_for_devices", one_is_late)
    model = tpfx.compile(Counter().eval(), 2, device_compiler="inductor", timeout=1.0)
    with (
        torch.no_grad(),
        pytest.raises(tpfx.CollectiveTimeout, match="rank 1 of 2 did not arrive in all_reduce"),
    ):
        model(torch.randn(5, 8))
