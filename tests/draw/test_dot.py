"""Plans for Graphviz."""

import re

import pytest

from tests.support.drawn import CASES, FRAMES
from tpfx.draw.dot import dot


@pytest.mark.recent_models
@pytest.mark.parametrize("name", CASES)
def test_a_graph_is_well_formed_and_shows_layers_and_collectives(plans, name):
    text = dot(*plans(name))
    assert f'label="{FRAMES[name]}"' in text
    assert text.count("{") == text.count("}")
    assert re.search(r'\[label="[^"]*all_reduce', text)
