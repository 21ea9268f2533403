"""TPFX_LOGS, in the manner of TORCH_LOGS."""

from __future__ import annotations

import logging
import re

import pytest
import torch

import tpfx
from tests.support.nets import TiedNet
from tests.support.sharded import CPUS
from tpfx.console import logs

IDS = torch.arange(10).view(2, 5)


@pytest.fixture(autouse=True)
def nothing_asked_for_afterwards(monkeypatch: pytest.MonkeyPatch):
    yield
    monkeypatch.delenv("TPFX_LOGS", raising=False)
    logs.heed()
    for log in map(logs.log_of, logs.LOGS):
        assert log.propagate and not any(isinstance(one, logs.Errors) for one in log.handlers)


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: str) -> list[str]:
    """What is told of a model that is called, given a hook, and called again."""
    monkeypatch.setenv("TPFX_LOGS", asked)
    model = tpfx.compile(TiedNet().eval(), CPUS)
    with torch.no_grad():
        model(IDS)
        model.up.register_forward_hook(lambda *_: None)
        model(IDS)
    return capsys.readouterr().err.splitlines()


def test_what_is_asked_for_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(monkeypatch, capsys, "graphs, plan,recompiles")
    assert len(lines) == 5  # two graphs, and why there is a second
    assert lines[0].startswith("[tpfx.graphs] captured ")
    assert re.search(r" of i64\[s\d+, s\d+\], with 6 weights$", lines[0])
    assert lines[1].startswith("[tpfx.plan] 2 devices: ") and "proven cheapest" in lines[1]
    assert "[tpfx.recompiles] TiedNet.forward is captured again: it has other hooks or weights" in lines
    assert told(monkeypatch, capsys, "") == []


def test_a_plus_tells_at_length(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(told(monkeypatch, capsys, "+plan"))
    assert "# forward on 2 devices" in text and "tpfx.graphs" not in text


@pytest.mark.parametrize("call", [lambda net: tpfx.compile(net, CPUS), lambda net: tpfx.plan(net, 2, (IDS,))])
def test_an_unknown_name_is_answered_with_those_that_there_are(monkeypatch: pytest.MonkeyPatch, call) -> None:
    monkeypatch.setenv("TPFX_LOGS", "plan,+grahps")
    net = TiedNet()
    with pytest.raises(
        tpfx.InputError,
        match=r"^TPFX_LOGS=plan,\+grahps: there is no log 'grahps'; there are plan, graphs, rec",
    ):
        call(net)
    assert all(type(weight) is torch.nn.Parameter for weight in net.parameters())


def test_a_program_may_listen_itself(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tpfx.plan"):
        tpfx.plan(TiedNet().eval(), 2, (IDS,))
    assert [record.name for record in caplog.records] == ["tpfx.plan"]
