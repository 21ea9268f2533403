"""Profiles that the page reads."""

import json

import pytest

from tpfx.draw.measured import Span, devices_of, read_spans
from tpfx.errors import InputError

SPAN = {"rank": 1, "layer": "layers.0", "kind": "wait", "start": 0.5, "seconds": 0.25}


def test_a_profile_is_a_list_of_spans(tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps([SPAN, SPAN | {"phase": "decode", "rank": 0}]))
    spans = read_spans(path)
    assert spans == [Span(1, "layers.0", "wait", 0.5, 0.25), Span(0, "layers.0", "wait", 0.5, 0.25, "decode")]
    assert devices_of(spans) == 2
    path.write_text(json.dumps({"spans": [SPAN]}))
    assert read_spans(path) == spans[:1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "cannot read the profile .*profile.json"),
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
