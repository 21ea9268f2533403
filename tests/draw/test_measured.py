"""Profiles that the page reads."""

import json

import pytest
import torch
from torch import nn

import tpfx
from tpfx.draw.measured import Span, devices_of, read_spans
from tpfx.errors import InputError

SPAN = {"rank": 1, "layer": "layers.0", "kind": "wait", "start": 0.5, "seconds": 0.25}


def test_a_profile_is_a_list_of_spans(tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps([SPAN, SPAN | {"graph": 1, "rank": 0}]))
    spans = read_spans(path)
    assert spans == [Span(1, "layers.0", "wait", 0.5, 0.25), Span(0, "layers.0", "wait", 0.5, 0.25, 1)]
    assert devices_of(spans) == 2


def test_a_profile_that_tpfx_has_saved_is_one(tmp_path):
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(2)))
    model, x = tpfx.compile(model, ["cpu", "cpu"]), torch.randn(4, 16)
    model(x).sum().backward()
    with tpfx.profile(model) as profile:
        model(x).sum().backward()
    path = tmp_path / "profile.json"
    profile.save(path)
    spans = read_spans(path)
    assert {span.graph for span in spans} == {0}
    assert {"0.0", "1.2", "0.0, backward", "1.2, backward"} <= {span.layer for span in spans}
    assert {span.kind for span in spans} >= {"compute", "collective"}
    forward, backward = ([one for one in spans if one.layer.endswith("backward") == way] for way in (0, 1))
    end = max(one.start + one.seconds for one in forward if one.layer)
    assert end <= min(one.start for one in backward) + 1e-9
    saved = json.loads(path.read_text())
    ranks = [rank for run in saved["timeline"] for rank in run["ranks"]]
    total = sum(one["seconds"] for rank in ranks for one in rank["spans"])
    assert sum(one.seconds for one in spans) == pytest.approx(total)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "cannot read the profile .*profile.json"),
        ('{"timeline": [{"phase": "forward"}]}', "no profile that this tpfx has saved: KeyError: 'ranks'"),
        ("[]", "it has to be a list of spans, of one at least"),
        ('{"rank": 0}', "it has to be a list of spans"),
        ("[1]", "its span 0 lacks rank, layer, kind, start or seconds, or has something else there: 1"),
        (json.dumps([SPAN, {"rank": 1}]), "its span 1 lacks"),
        (json.dumps([SPAN | {"kind": "sleep"}]), "kind 'sleep'.*a kind is compute, collective, wait"),
        (json.dumps([SPAN | {"rank": -1}]), "has rank -1.*not negative"),
        (json.dumps([SPAN | {"seconds": float("nan")}]), "seconds nan"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path, text, told):
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(InputError, match=told):
        read_spans(path)


def test_a_profile_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the profile .*none\.json: No such file"):
        read_spans(tmp_path / "none.json")
