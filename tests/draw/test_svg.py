"""Plans as pictures."""

import xml.etree.ElementTree as ET

import pytest

from tests.support.drawn import CASES, FRAMES
from tpfx.draw.svg import svg


@pytest.mark.recent_models
@pytest.mark.parametrize("name", CASES)
def test_a_picture_is_well_formed_and_shows_layers_and_collectives(plans, name):
    texts = [element.text for element in ET.fromstring(svg(*plans(name))).iter() if element.text]
    assert FRAMES[name] in texts
    assert ("layers.3–0 ×4, backward" in texts) == name.endswith("train")
    assert any("all_reduce" in text for text in texts)
